"""The authors' released fusion and loss gave the same value (relative difference below 1e-7) and gradient (3e-7) in
float32 on the same weights and four levels, three of them of other sizes than the teacher's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.reviewkd import hierarchical_context_loss
from tests.functional.checks import check_empty, check_low_precision


def grids(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "reviewkd", *shape)
    return tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))


def pooled(grid: np.ndarray, size: list[int]) -> np.ndarray:
    """Averages bin i of n over the cells from floor(i N / n) to ceil((i + 1) N / n), one bin at a time."""
    out = np.zeros((*grid.shape[:2], *size))
    for bin_ in itertools.product(*map(range, size)):
        cells = (slice(i * n // m, -(-(i + 1) * n // m)) for i, n, m in zip(bin_, grid.shape[2:], size, strict=True))
        whole = (slice(None), slice(None))
        read: Any = (*whole, *cells)
        write: Any = (*whole, *bin_)
        out[write] = grid[read].reshape(*grid.shape[:2], -1).mean(2)
    return out


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    """Both grids pooled, one size after another."""
    losses, weights = [((student - teacher) ** 2).mean()], [1.0]
    for cells in (4, 2, 1):
        size = [min(n, cells) for n in student.shape[2:]]
        if size == list(student.shape[2:]):
            continue
        losses.append(((pooled(student, size) - pooled(teacher, size)) ** 2).mean())
        weights.append(weights[-1] / 2)
    return float(np.dot(losses, weights) / sum(weights))


@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 1), (3, 4, 8, 8), (2, 3, 7, 7), (2, 3, 4, 4), (2, 3, 3, 9), (2, 3, 6), (2, 2, 5, 4, 6)]
)
def test_matches_the_equations(shape):
    student, teacher = grids(*shape)
    value = hierarchical_context_loss(student, teacher)
    assert value.item() == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-6)


def test_one_cell_is_the_mean_square():
    student, teacher = grids(3, 5, 1, 1)
    torch.testing.assert_close(hierarchical_context_loss(student, teacher), (student - teacher).square().mean())


def test_minimum_and_gradients():
    student, teacher = grids(2, 3, 5, 5)
    assert hierarchical_context_loss(teacher, teacher) == 0
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hierarchical_context_loss(s, teacher), (student,))


def test_low_precision():
    student, teacher = grids(4, 32, 16, 16)
    check_low_precision(hierarchical_context_loss, student, teacher)


def test_empty():
    check_empty(hierarchical_context_loss, (0, 3, 8, 8), (0, 3, 8, 8))


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(1, 3, 4, 4\).*\(1, 2, 4, 4\)"):
        hierarchical_context_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))
