"""References are the authors' losses in words (jbwang1997/CrossKD), one score and box at a time, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.crosskd import align_scale, box_overlap_loss, quality_focal_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision

ONE = torch.tensor(1)


def pair(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "crosskd", *shape)
    return tuple(3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def boxes(count: int) -> tuple[torch.Tensor, ...]:
    corners = pair(count, 2)
    sides = [1 + x.abs() for x in pair(count, 2)]
    first, second = (torch.cat([c, c + s], 1) for c, s in zip(corners, sides, strict=True))
    return first, second, torch.rand(count, generator=rng.generator(0, "weights", count), dtype=torch.float64)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_scores(beta):
    student, teacher = pair(5, 3)
    total = 0.0
    for at in np.ndindex(5, 3):
        q, wanted = (1 / (1 + np.exp(-x[at].item())) for x in (student, teacher))
        total -= abs(q - wanted) ** beta * (wanted * np.log(q) + (1 - wanted) * np.log(1 - q))
    assert quality_focal_loss(student, teacher, torch.tensor(4), beta).item() == pytest.approx(total / 4, rel=1e-9)
    assert quality_focal_loss(student, teacher, torch.tensor(0), beta).item() == pytest.approx(total, rel=1e-9)
    assert quality_focal_loss(teacher, teacher, ONE, beta) == 0
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: quality_focal_loss(s, teacher, ONE, beta), (student,))


def test_boxes():
    first, second, weight = boxes(6)
    total = 0.0
    for s, t, w in zip(first.numpy(), second.numpy(), weight.tolist(), strict=True):
        shared = np.prod(np.clip(np.minimum(s[2:], t[2:]) - np.maximum(s[:2], t[:2]), 0, None))
        union = sum(np.prod(x[2:] - x[:2]) for x in (s, t)) - shared
        around = np.prod(np.maximum(s[2:], t[2:]) - np.minimum(s[:2], t[:2]))
        total += w * (1 - shared / union + (around - union) / around)
    assert box_overlap_loss(first, second, weight, torch.tensor(3)).item() == pytest.approx(total / 3, rel=1e-6)
    assert box_overlap_loss(second, second, weight, ONE).item() == pytest.approx(0, abs=1e-6)
    first.requires_grad_()
    (gradient,) = torch.autograd.grad(box_overlap_loss(first, second, weight, ONE), first)
    assert gradient.any(1).all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 6), (3, 1, 1, 2)])
def test_scale(shape):
    student, teacher = pair(*shape)
    made = align_scale(2 * student + 7, teacher)
    for c in range(shape[1]):
        s, t = student[:, c].numpy(), teacher[:, c].numpy()
        expected = (s - s.mean()) / s.std() * t.std() + t.mean()
        torch.testing.assert_close(made[:, c], torch.from_numpy(expected))
    torch.testing.assert_close(align_scale(teacher, teacher), teacher)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: align_scale(s, teacher), (student,))


def test_a_channel_that_does_not_vary_takes_the_mean():
    student, teacher = torch.full((2, 1, 3), 0.1, requires_grad=True), pair(2, 1, 3)[1].float()
    made = align_scale(student, teacher)
    torch.testing.assert_close(made, teacher.mean().expand_as(made))
    (gradient,) = torch.autograd.grad(made.square().sum(), student)
    assert gradient.isfinite().all()


def test_low_precision_and_no_rows():
    student, teacher = (x.float() for x in pair(5, 3))
    check_low_precision(quality_focal_loss, student, teacher, ONE)
    check_autocast(lambda s, t: quality_focal_loss(s, t, ONE), student, teacher)
    first, second, weight = (x.float() for x in boxes(6))
    check_low_precision(box_overlap_loss, first, second, weight, ONE)
    check_empty(quality_focal_loss, (0, 3), (0, 3), torch.tensor(0))
    check_empty(box_overlap_loss, (0, 4), (0, 4), (0,), torch.tensor(0))
    assert align_scale(torch.zeros(0, 2, 3), torch.zeros(0, 2, 3)).shape == (0, 2, 3)
    for loss, given in ((quality_focal_loss, (ONE,)), (box_overlap_loss, (weight, ONE)), (align_scale, ())):
        with pytest.raises(KDBenchError, match="the student has shape"):
            loss(first, second[:, :3], *given)
