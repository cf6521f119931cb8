from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.simkd import simkd_loss
from tests.functional.checks import check_empty, check_low_precision


def maps(b: int, c: int, space: tuple[int, ...], factor: int) -> tuple[torch.Tensor, ...]:
    """A map and one of the teacher that is ``factor`` times as large along each axis."""
    g = rng.generator(0, "simkd", b, c, *space, factor)
    sizes = (space, tuple(factor * n for n in space))
    student, teacher = (torch.randn(b, c, *size, generator=g, dtype=torch.float64) for size in sizes)
    return student, teacher


def reference(student: np.ndarray, teacher: np.ndarray, factor: int) -> float:
    """One element of the student at a time, against the mean of the teacher's cells that it covers."""
    squares = []
    for at in np.ndindex(*student.shape):
        cells: Any = (*at[:2], *(slice(factor * i, factor * (i + 1)) for i in at[2:]))
        squares.append((student[at] - teacher[cells].mean()) ** 2)
    return float(sum(squares) / len(squares))


@pytest.mark.parametrize(("b", "c", "space"), [(1, 2, (1, 1)), (3, 4, (2, 3)), (2, 3, (5,)), (2, 2, (2, 1, 3))])
@pytest.mark.parametrize("factor", [1, 2])
def test_matches_the_equations(b, c, space, factor):
    student, teacher = maps(b, c, space, factor)
    assert simkd_loss(student, teacher).item() == pytest.approx(
        reference(student.numpy(), teacher.numpy(), factor), rel=1e-6
    )


def test_minimum_and_gradients():
    student, teacher = maps(2, 3, (2, 2), 2)
    assert simkd_loss(teacher, teacher) == 0
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: simkd_loss(s, teacher), (student,))


def test_low_precision():
    student, teacher = maps(4, 32, (8, 8), 2)
    check_low_precision(simkd_loss, student, teacher)


def test_empty():
    check_empty(simkd_loss, (0, 3, 2, 2), (0, 3, 4, 4))


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(1, 3, 2, 2\).*\(1, 4, 2, 2\)"):
        simkd_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, 4))
