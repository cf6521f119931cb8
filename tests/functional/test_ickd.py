"""Value and gradient agree with ``ICKDLoss`` of ADLab-AutoDrive/ICKD, run outside of this repository behind its own
embedding on (2, 6 / 10, 4, 4), (8, 64, 8, 8) and (4, 16 / 256, 7, 5): to 8e-16 in float64, 5e-7 in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ickd import channel_correlation, channel_correlation_loss
from tests.functional.checks import check_empty, check_low_precision


def grids(b: int, c: int, *space: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ickd", b, c, *space)
    return tuple(torch.randn(b, c, *space, generator=g, dtype=torch.float64) for _ in range(2))


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    total, channels = 0.0, student.shape[1]
    for sample in zip(student, teacher, strict=True):
        for i in range(channels):
            rows = []
            for feature in sample:
                row = [float((feature[i] * feature[j]).sum()) for j in range(channels)]
                length = math.sqrt(sum(v * v for v in row))
                rows.append([v / length for v in row])
            total += sum((s - t) ** 2 for s, t in zip(*rows, strict=True))
    return total / (len(student) * channels)


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 4, 5, 3), (2, 3, 2, 3, 2)])
def test_matches_the_equations(shape):
    student, teacher = grids(*shape)
    expected = reference(student.numpy(), teacher.numpy())
    assert channel_correlation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_minimum_and_gradients():
    student, teacher = grids(2, 3, 2, 3)
    assert channel_correlation_loss(teacher, teacher) == 0
    # Neither the order nor the number of the positions matters, nor the scale of a sample.
    other = 2 * torch.cat([teacher, teacher.flip(3)], dim=3)
    assert channel_correlation_loss(other, teacher) == pytest.approx(0, abs=1e-12)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: channel_correlation_loss(s, teacher), (student,))
    channel_correlation_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0


def test_a_dead_channel_gives_a_bounded_gradient():
    student, teacher = (x.float() for x in grids(2, 4, 3, 3))
    student[:, 1] = 0
    student.requires_grad_()
    channel_correlation_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10
    assert not channel_correlation(student)[:, 1].any()


def test_low_precision():
    student, teacher = grids(4, 16, 8, 8)
    check_low_precision(channel_correlation_loss, student, teacher)


def test_empty():
    check_empty(channel_correlation_loss, (0, 3, 4, 4), (0, 3, 2, 2))


def test_errors():
    with pytest.raises(KDBenchError, match="as many channels"):
        channel_correlation_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))
    with pytest.raises(KDBenchError, match="space"):
        channel_correlation_loss(torch.zeros(2, 3), torch.zeros(2, 3))
