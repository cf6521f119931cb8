"""RepDistiller's (BSD-2) code gave the same loss to the bit and its gradient within 5e-16 in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.fsp import fsp_loss, fsp_matrix
from tests.functional.checks import check_autocast, check_empty, check_low_precision

Layers = list[torch.Tensor]


def layers(b: int, widths: tuple[int, ...], *space: int) -> tuple[Layers, Layers]:
    g = rng.generator(0, "fsp", b, *widths, *space)
    both = ([torch.randn(b, c, *space, generator=g, dtype=torch.float64) for c in widths] for _ in range(2))
    return next(both), next(both)


def reference(student: Layers, teacher: Layers) -> float:
    """Eq. 1 and 2, one entry of a matrix at a time."""
    total = 0.0
    for level in range(len(student) - 1):
        squares = []
        for b in range(len(student[0])):
            entries = []
            for side in (student, teacher):
                first, second = (x[b].numpy() for x in side[level : level + 2])
                cells = list(itertools.product(*map(range, first.shape[1:])))
                entries.append(
                    [
                        sum(first[(i, *at)] * second[(j, *at)] for at in cells) / len(cells)
                        for i in range(len(first))
                        for j in range(len(second))
                    ]
                )
            squares += [(s - t) ** 2 for s, t in zip(*entries, strict=True)]
        total += float(np.mean(squares))
    return total


@pytest.mark.parametrize(("widths", "space"), [((3, 4), (5,)), ((2, 3, 4), (3, 4)), ((4, 2), (2, 3, 2))])
@pytest.mark.parametrize("b", [1, 3])
def test_matches_the_equations(b, widths, space):
    student, teacher = layers(b, widths, *space)
    assert fsp_loss(student, teacher).item() == pytest.approx(reference(student, teacher), rel=1e-6)


def test_minimum():
    student, teacher = layers(3, (3, 4), 4, 4)
    assert fsp_loss(teacher, teacher) == 0
    # Where in the map channels agree does not matter.
    assert fsp_loss([x.flip(2) for x in teacher], teacher) == pytest.approx(0, abs=1e-20)
    assert fsp_loss(student, teacher) > 1e-3


def test_the_larger_map_is_pooled():
    (first, second), _ = layers(2, (3, 4), 4, 6)
    small = second.unflatten(3, (3, 2)).mean(4)
    torch.testing.assert_close(fsp_matrix(first, small), fsp_matrix(first.unflatten(3, (3, 2)).mean(4), small))
    # Student and teacher need not be of one size.
    assert fsp_loss([first, second], [first[..., :3], second[..., :3]]).isfinite()


def test_gradients():
    student, teacher = layers(2, (2, 3), 2, 2)
    for x in student:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *s: fsp_loss(s, teacher), tuple(student))


def two_layers(*tensors: torch.Tensor) -> torch.Tensor:
    """The loss of two layers of the student and two of the teacher."""
    return fsp_loss(tensors[:2], tensors[2:])


def test_low_precision_also_under_autocast():
    student, teacher = ([x.float() for x in side] for side in layers(4, (16, 32), 6, 6))
    check_low_precision(two_layers, *student, *teacher)
    check_autocast(two_layers, *student, *teacher)


def test_empty():
    check_empty(two_layers, *2 * [(0, 3, 4, 4), (0, 5, 2, 2)])


def test_errors():
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    with pytest.raises(KDBenchError, match="found 1 layers of the student and 2 of the teacher"):
        fsp_loss([a], [a, b])
    with pytest.raises(KDBenchError, match=r"layers 0 and 1.*\(2, 3, 5\).*\(2, 3, 3\)"):
        fsp_loss([a, b], [a, a])
