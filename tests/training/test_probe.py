from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.features import Grid, Points, Vector
from kdbench.training.probe import explained


def normal(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "probe", name), dtype=torch.float64)


def test_a_linear_map_explains_all_and_noise_nothing():
    x = normal(4, 6, 10, 10)
    mixed = torch.einsum("dc,bchw->bdhw", normal(9, 6, name="w"), x) + 3
    assert explained(Grid(x), Grid(mixed)) == pytest.approx(1, abs=1e-4)
    noise = explained(Grid(x), Grid(normal(4, 9, 10, 10, name="n")))
    assert noise is not None
    assert -0.2 < noise < 0.1


def test_half_of_the_variance_is_half():
    x, rest = normal(20_000, 3), normal(20_000, 3, name="r")
    assert explained(Vector(x), Vector(x + rest)) == pytest.approx(0.5, abs=0.03)


def test_it_equals_a_fit_on_even_samples_judged_on_odd_ones():
    x, y = normal(60, 4), normal(60, 5, name="y")
    y[:, 0] += x[:, 1] * x[:, 2]
    y += x @ normal(4, 5, name="w")
    sample = torch.arange(3).repeat_interleave(20)
    coords = torch.zeros(60, 3)
    even = sample % 2 == 0
    design = torch.cat([x, torch.ones(60, 1)], 1)
    solution = torch.linalg.lstsq(design[even], y[even]).solution
    rest = y[~even]
    expected = 1 - (rest - design[~even] @ solution).square().sum() / (rest - rest.mean(0)).square().sum()
    assert explained(Points(x, coords, sample), Points(y, coords, sample)) == pytest.approx(expected.item(), abs=1e-3)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((8, 3), (9, 3)), ((0, 3), (0, 3)), ((6, 40), (6, 3)), ((1, 1), (1, 1))],
)
def test_what_cannot_be_fitted_is_none(student: Any, teacher: Any):
    assert explained(Vector(normal(*student)), Vector(normal(*teacher))) is None


def test_a_constant_teacher_has_nothing_to_explain():
    assert explained(Vector(normal(50, 3)), Vector(torch.ones(50, 2))) is None
