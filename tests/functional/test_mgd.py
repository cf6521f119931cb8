"""The authors' released losses gave the same values bit for bit in float32 on the same weights and draws: that of
classification (masks over channels) and that of segmentation (over positions, with the mirrored draw)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.mgd import mgd_loss, random_mask
from tests.functional.checks import check_empty, check_low_precision

OVER = ["channels", "positions"]


def pair(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "mgd", *shape)
    return tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 2, 5), (2, 3, 2, 2, 3)])
def test_matches_the_equation(shape):
    student, teacher = pair(*shape)
    total = 0.0
    for at in np.ndindex(*shape):
        total += float(student[at] - teacher[at]) ** 2
    assert mgd_loss(student, teacher).item() == pytest.approx(total / shape[0], rel=1e-6)


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.75])
def test_mask(over, ratio):
    feature = torch.zeros(40, 16, 8, 8, dtype=torch.float64)
    mask = random_mask(feature, ratio, over, rng.generator(0, "mask"))
    assert mask.shape == ((40, 16, 1, 1) if over == "channels" else (40, 1, 8, 8))
    assert mask.dtype == feature.dtype
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(1 - ratio, abs=0.06)
    # Each sample has its own.
    assert ratio == 0 or len({tuple(m.flatten().tolist()) for m in mask}) > 20
    assert torch.equal(mask, random_mask(feature, ratio, over, rng.generator(0, "mask")))
    assert ratio == 0 or not torch.equal(mask, random_mask(feature, ratio, over, rng.generator(1, "mask")))


def test_the_mask_is_where_uniform_draws_reach_the_ratio():
    draws = torch.rand((2, 3, 1, 1), generator=rng.generator(0, "draw"))
    mask = random_mask(torch.zeros(2, 3, 4, 4), 0.4, "channels", rng.generator(0, "draw"))
    for at in np.ndindex(*draws.shape):
        assert mask[at] == (0 if draws[at] < 0.4 else 1)


def test_minimum_and_gradients():
    student, teacher = pair(2, 3, 2, 2)
    assert mgd_loss(teacher, teacher) == 0
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mgd_loss(s, teacher), (student,))


def test_low_precision():
    student, teacher = pair(4, 32, 8, 8)
    check_low_precision(mgd_loss, student, teacher)


@pytest.mark.parametrize("over", OVER)
def test_empty(over):
    check_empty(lambda s, t: mgd_loss(s * random_mask(s, 0.5, over), t), (0, 3, 4, 4), (0, 3, 4, 4))


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(1, 3\).*\(1, 4\)"):
        mgd_loss(torch.zeros(1, 3), torch.zeros(1, 4))
