"""RepDistiller (BSD-2) and mdistiller (MIT) gave the same loss to the bit and its gradient within 1e-15 in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.nst import nst_loss
from tests.functional.checks import check_autocast, check_low_precision, check_zero


def grids(b: int, c_s: int, c_t: int, *space: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "nst", b, c_s, c_t, *space)
    return tuple(torch.randn(b, c, *space, generator=g, dtype=torch.float64) for c in (c_s, c_t))


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    """Squared MMD, one pair of channels at a time."""

    def kernel(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
        return (
            sum(float(sum(a * b for a, b in zip(x, y, strict=True))) ** 2 for x in xs for y in ys) / len(xs) / len(ys)
        )

    total = 0.0
    for b in range(len(student)):
        s, t = ([m.flatten() / np.sqrt((m.flatten() ** 2).sum()) for m in side[b]] for side in (student, teacher))
        total += kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    return total / len(student)


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 4, 4, 5, 3), (2, 3, 5, 2, 3, 2)])
def test_matches_the_equation(shape):
    student, teacher = grids(*shape)
    assert nst_loss(student, teacher).item() == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-6)


def test_minimum():
    student, teacher = grids(3, 4, 4, 5, 5)
    # A distribution does not see the order, the size or the number of copies of its samples.
    assert nst_loss(3 * teacher.flip(1), teacher) == pytest.approx(0, abs=1e-12)
    assert nst_loss(teacher.repeat(1, 2, 1, 1), teacher) == pytest.approx(0, abs=1e-12)
    assert nst_loss(student, teacher) > 1e-3


def test_gradients():
    student, teacher = grids(2, 3, 4, 2, 2)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: nst_loss(s, teacher), (student,))


def test_the_larger_grid_is_pooled():
    student, teacher = grids(2, 3, 5, 4, 6)
    small = teacher.unflatten(3, (3, 2)).mean(4)
    torch.testing.assert_close(nst_loss(student, small), nst_loss(student.unflatten(3, (3, 2)).mean(4), small))


def test_low_precision_also_under_autocast():
    student, teacher = (x.float() for x in grids(4, 16, 32, 6, 6))
    check_low_precision(nst_loss, student, teacher)
    check_autocast(nst_loss, student, teacher)


@pytest.mark.parametrize("b", [0, 2])
def test_empty_and_dead(b):
    check_zero(nst_loss, (b, 3, 4, 4), (b, 5, 2, 2))


def test_errors():
    with pytest.raises(KDBenchError, match="nst_loss: found shapes"):
        nst_loss(torch.zeros(2, 3, 4), torch.zeros(1, 3, 4))
