"""Against the authors' code (bellymonster/Weighted-Soft-Label-Distillation, run outside of this repository on the same
tensors up to 33 x 1000, T 2, alpha 2.5, its class count set to C): value within 2e-16 and gradient within 2e-16 in
float64, the same value and 1e-7 in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.wsld import soft_label_weight, wsld_loss
from tests.functional.checks import check_empty, check_low_precision


def rows(n: int, c: int) -> tuple[torch.Tensor, ...]:
    """Logits of both, true classes and row weights."""
    g = rng.generator(0, "wsld", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(c, (n,), generator=g), torch.rand(n, generator=g, dtype=torch.float64)


def softmax(values: np.ndarray) -> list[float]:
    return [math.exp(v) / sum(math.exp(u) for u in values) for v in values]


def reference(student: np.ndarray, teacher: np.ndarray, target: np.ndarray, t: float, weight: np.ndarray) -> float:
    """One row at a time."""
    total = 0.0
    for z_s, z_t, y, w in zip(student, teacher, target, weight, strict=True):
        ce_s, ce_t = (-math.log(softmax(z)[y]) for z in (z_s, z_t))
        soft = -sum(a * math.log(b) for a, b in zip(softmax(z_t / t), softmax(z_s / t), strict=True))
        total += w * (1 - math.exp(-ce_s / (ce_t + 1e-7))) * t * t * soft
    return total / weight.sum()


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (9, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_equations(shape, temperature, weighted):
    student, teacher, target, weight = rows(*shape)
    value = wsld_loss(student, teacher, target, temperature, weight=weight if weighted else None)
    w = weight.numpy() if weighted else np.ones(shape[0])
    expected = reference(student.numpy(), teacher.numpy(), target.numpy(), temperature, w)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_every_option_changes_the_value():
    student, teacher, target, weight = rows(6, 5)
    values = [
        wsld_loss(student, teacher, target),
        wsld_loss(student, teacher, target, 2.0),
        wsld_loss(student, teacher, (target + 1) % 5),
        wsld_loss(student, teacher, target, weight=weight),
    ]
    assert len({round(v.item(), 6) for v in values}) == len(values)


def test_rows_that_the_student_masters_fade():
    target = torch.tensor([0, 0, 0])
    student = torch.tensor([[30.0, 0.0], [0.0, 0.0], [-30.0, 0.0]])
    weights = soft_label_weight(student, torch.zeros(3, 2), target)
    assert weights.tolist() == pytest.approx([0, 1 - math.exp(-1), 1], abs=1e-6)
    # A teacher without doubt: no division by zero.
    assert soft_label_weight(student, torch.tensor([[200.0, 0.0]] * 3), target)[1:].tolist() == [1, 1]


def test_minimum():
    _, teacher, target, _ = rows(6, 5)
    student = teacher.clone().requires_grad_()
    value = wsld_loss(student, teacher, target, 2.0)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    entropy = torch.distributions.Categorical(logits=teacher / 2).entropy()
    expected = 4 * (1 - math.exp(-1)) * entropy.mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_gradient_is_that_of_kd_under_a_constant_weight():
    student, teacher, target, weight = rows(3, 4)
    student.requires_grad_()
    (grad,) = torch.autograd.grad(wsld_loss(student, teacher, target, 2.0, weight=weight), student)
    constant = soft_label_weight(student, teacher, target) * weight / weight.sum()
    expected = 2 * constant[:, None] * ((student / 2).softmax(1) - (teacher / 2).softmax(1))
    torch.testing.assert_close(grad, expected.detach())
    assert grad.abs().min() > 0


def test_low_precision():
    student, teacher, target, _ = rows(64, 100)
    check_low_precision(wsld_loss, student, teacher, target)


def test_no_rows():
    check_empty(wsld_loss, (0, 5), (0, 5), torch.zeros(0, dtype=torch.long))


def test_errors():
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(2, 4\)"):
        wsld_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
