"""The authors' code (bhheo/AB_distillation, MIT) and RepDistiller (BSD-2) gave the same loss and gradient to the bit in
float64, with their factor 0.003 and their weights of layers."""

from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ab import activation_boundary_loss
from tests.functional.checks import check_empty, check_low_precision


def features(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ab", *shape)
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def reference(student: torch.Tensor, teacher: torch.Tensor, margin: float) -> float:
    """One neuron at a time."""
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
        elif t <= 0 and s > -margin:
            total += (s + margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("shape", [(1, 3), (4, 5, 7), (2, 3, 4, 5), (3, 2, 2, 3, 2)])
@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_matches_the_equation(shape, margin):
    student, teacher = features(*shape)
    value = activation_boundary_loss(student, teacher, margin).item()
    assert value == pytest.approx(reference(student, teacher, margin), rel=1e-6)


def test_zero_beyond_the_margin_on_the_teachers_side():
    _, teacher = features(4, 5)
    student = (2 * teacher.sign()).requires_grad_()
    value = activation_boundary_loss(student, teacher)
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert not student.grad.any()
    assert activation_boundary_loss(-student, teacher).item() == pytest.approx(9 * 5)


def test_gradients():
    student, teacher = features(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: activation_boundary_loss(s, teacher), (student,))


def test_low_precision():
    student, teacher = features(8, 16, 4)
    check_low_precision(activation_boundary_loss, student, teacher)


def test_empty():
    check_empty(activation_boundary_loss, (0, 4, 2), (0, 4, 2))


def test_shapes_must_agree():
    with pytest.raises(KDBenchError, match=r"activation_boundary_loss.*\(2, 4\).*\(2, 1\)"):
        activation_boundary_loss(torch.zeros(2, 4), torch.zeros(2, 1))
