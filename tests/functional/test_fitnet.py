from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.fitnet import hint_loss
from tests.functional.checks import check_empty, check_low_precision


def features(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "fitnet", *shape)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("shape", [(1, 3), (4, 8), (2, 3, 5, 4), (2, 7, 6)])
def test_matches_the_equation(shape):
    student, teacher = features(*shape)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (s - t) ** 2
    assert hint_loss(student, teacher).item() == pytest.approx(total / student.numel(), rel=1e-6)


def test_minimum_and_gradients():
    student, teacher = features(2, 3, 2)
    assert hint_loss(teacher, teacher) == 0
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher), (student,))
    hint_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - teacher) / student.numel())


def test_low_precision():
    student, teacher = features(64, 64, 8)
    check_low_precision(hint_loss, student, teacher, rel=0.01)


def test_empty():
    check_empty(hint_loss, (0, 8), (0, 8))


def test_shapes_must_agree():
    with pytest.raises(KDBenchError, match=r"hint_loss.*\(2, 4\).*\(2, 1\).*project"):
        hint_loss(torch.zeros(2, 4), torch.zeros(2, 1))
