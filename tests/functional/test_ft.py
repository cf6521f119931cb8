"""``code`` gave the loss and gradient of RepDistiller (BSD-2), ``paper`` those of the authors' Factor-Transfer-pytorch,
each to the bit in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ft import factor_loss
from tests.functional.checks import check_low_precision, check_zero


def factors(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ft", *shape)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def reference(student: np.ndarray, teacher: np.ndarray, p: float, faithful: str) -> float:
    """One element at a time."""
    terms = []
    for b in range(len(student)):
        sides = []
        for feature in (student[b], teacher[b]):
            if faithful == "code":
                cells = itertools.product(*map(range, feature.shape[1:]))
                values = [sum(feature[(c, *at)] ** 2 for c in range(len(feature))) / len(feature) for at in cells]
            else:
                values = feature.flatten().tolist()
            length = sum(v * v for v in values) ** 0.5
            sides.append([v / length for v in values])
        terms += [abs(s - t) ** p for s, t in zip(*sides, strict=True)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 5, 3), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("p", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_matches_the_equations(shape, p, faithful):
    student, teacher = factors(*shape)
    value = factor_loss(student, teacher, p=p, faithful=faithful).item()
    assert value == pytest.approx(reference(student.numpy(), teacher.numpy(), p, faithful), rel=1e-6)


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_minimum_and_scale(faithful):
    student, teacher = factors(3, 4, 5, 5)
    assert factor_loss(teacher, teacher, faithful=faithful) == 0
    assert factor_loss(3 * teacher, teacher, faithful=faithful) == pytest.approx(0, abs=1e-12)
    assert factor_loss(student, teacher, faithful=faithful) > 1e-3


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_gradients(faithful):
    student, teacher = factors(2, 3, 2, 2)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: factor_loss(s, teacher, faithful=faithful), (student,))


def test_the_larger_factor_is_pooled():
    student, teacher = factors(2, 3, 4, 6)
    small = teacher.unflatten(3, (3, 2)).mean(4)
    torch.testing.assert_close(factor_loss(student, small), factor_loss(student.unflatten(3, (3, 2)).mean(4), small))


@pytest.mark.parametrize("faithful", ["paper", "code"])
def test_low_precision_empty_and_dead(faithful):
    student, teacher = factors(4, 16, 6, 6)
    check_low_precision(factor_loss, student, teacher, faithful=faithful)
    for shape in ((0, 3, 4, 4), (2, 3, 4, 4)):
        check_zero(factor_loss, shape, shape, faithful=faithful)


def test_errors():
    with pytest.raises(KDBenchError, match=r"factor_loss.*\(2, 4, 3\).*\(2, 1, 3\)"):
        factor_loss(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3))
    with pytest.raises(KDBenchError, match="did you mean 'paper'"):
        factor_loss(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), faithful="papr")  # type: ignore[arg-type]
