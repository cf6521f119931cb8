"""The standardised loss against the authors' code (sunshangquan/logit-standardization-KD) and the learned temperature
against zhengli97/CTKD, both run outside of this repository on the same tensors up to 33 x 1000: value within 4e-15 and
gradient within 3e-15 (of theta, a small difference of large numbers, 5e-11) in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.kd import adversarial_temperature, cosine_ramp, kd_loss, z_score
from tests.functional.checks import check_empty, check_low_precision


def logits(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "kd", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


def reference(student: np.ndarray, teacher: np.ndarray, t: float, weight: np.ndarray, standardize: bool) -> float:
    """T^2 times the weighted mean of sum p_t log(p_t / p_s), one row at a time."""
    total = 0.0
    for s, z, w in zip(student, teacher, weight, strict=True):
        if standardize:
            s, z = ((v - v.mean()) / (1e-7 + math.sqrt(((v - v.mean()) ** 2).sum() / (len(v) - 1))) for v in (s, z))
        p_s, p_t = (np.exp(v / t) / np.exp(v / t).sum() for v in (s, z))
        total += w * t * t * float((p_t * np.log(p_t / p_s)).sum())
    return total / weight.sum()


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_equations(shape, temperature, standardize, weighted):
    student, teacher, weight = logits(*shape)
    value = kd_loss(student, teacher, temperature, standardize=standardize, weight=weight if weighted else None)
    w = weight.numpy() if weighted else np.ones(shape[0])
    expected = reference(student.numpy(), teacher.numpy(), temperature, w, standardize)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_t_squared_keeps_the_gradient():
    student, teacher, _ = logits(16, 10)
    sizes = []
    for temperature in (50.0, 100.0):
        leaf = student.clone().requires_grad_()
        kd_loss(leaf, teacher, temperature).backward()
        assert leaf.grad is not None
        sizes.append(leaf.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_every_option_changes_the_value():
    student, teacher, weight = logits(6, 5)
    values = [
        kd_loss(student, teacher),
        kd_loss(student, teacher, 2.0),
        kd_loss(student, teacher, law="bernoulli"),
        kd_loss(student, teacher, standardize=True),
        kd_loss(student, teacher, weight=weight),
    ]
    assert len({round(v.item(), 6) for v in values}) == len(values)


def test_minimum():
    student, teacher, _ = logits(6, 5)
    assert kd_loss(teacher, teacher) == 0
    assert kd_loss(teacher, teacher, law="bernoulli") == 0
    # Standardisation frees the student's offset and scale.
    assert kd_loss(3 * teacher + 7, teacher, standardize=True) == pytest.approx(0, abs=1e-9)
    assert kd_loss(3 * teacher + 7, teacher) > 0.1


@pytest.mark.parametrize("options", [{}, {"law": "bernoulli"}, {"standardize": True}])
def test_gradients(options):
    student, teacher, weight = logits(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, 2.0, weight=weight, **options), (student,))
    kd_loss(student, teacher, 2.0, **options).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0


def test_zero_weight_removes_a_row():
    student, teacher, _ = logits(4, 3)
    weight = torch.tensor([2.0, 2.0, 2.0, 0.0])
    torch.testing.assert_close(kd_loss(student, teacher, weight=weight), kd_loss(student[:3], teacher[:3]))


@pytest.mark.parametrize("options", [{}, {"law": "bernoulli"}, {"standardize": True}])
def test_low_precision(options):
    student, teacher, _ = logits(64, 100)
    check_low_precision(kd_loss, student, teacher, **options)


@pytest.mark.parametrize("options", [{}, {"law": "bernoulli"}, {"standardize": True}, {"weight": torch.ones(0)}])
def test_no_rows(options):
    check_empty(kd_loss, (0, 5), (0, 5), **options)


def test_constant_logits_can_be_standardized():
    student = torch.zeros(2, 4, requires_grad=True)
    value = kd_loss(student, torch.randn(2, 4, generator=rng.generator(0, "constant")), standardize=True)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 100)])
@pytest.mark.parametrize(("theta", "low", "span"), [(1.0, 1.0, 20.0), (-2.0, 2.0, 6.0)])
@pytest.mark.parametrize("standardize", [False, True])
def test_learned_temperature_matches_its_equation(shape, theta, low, span, standardize):
    student, teacher, _ = logits(*shape)
    temperature = low + span / (1 + math.exp(-theta))
    found = adversarial_temperature(torch.tensor(theta, dtype=torch.float64), 0.7, low, span)
    assert found.item() == pytest.approx(temperature, rel=1e-12)
    value = kd_loss(student, teacher, found, standardize=standardize)
    expected = reference(student.numpy(), teacher.numpy(), temperature, np.ones(shape[0]), standardize)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_gradient_of_theta_is_reversed_and_that_of_the_student_is_not():
    student, teacher, _ = logits(5, 4)
    student.requires_grad_()
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(kd_loss(student, teacher, 1 + 20 * torch.sigmoid(theta)), (student, theta))
    for reversal in (0.0, 0.3, 1.0):
        loss = kd_loss(student, teacher, adversarial_temperature(theta, reversal))
        of_student, of_theta = torch.autograd.grad(loss, (student, theta))
        torch.testing.assert_close(of_student, plain[0])
        torch.testing.assert_close(of_theta, -reversal * plain[1])
    assert plain[1] != 0


def test_ramp():
    assert [cosine_ramp(p, 0.4) for p in (0.0, 0.1, 0.2, 0.4, 1.0)] == pytest.approx(
        [0.0, (1 - math.cos(math.pi / 4)) / 2, 0.5, 1.0, 1.0]
    )
    assert cosine_ramp(0.0, 0.0) == 1


def test_errors():
    with pytest.raises(KDBenchError, match="standardize=False"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), law="bernoulli", standardize=True)
    with pytest.raises(KDBenchError, match="1 class, expected at least 2"):
        z_score(torch.zeros(2, 1))
    with pytest.raises(KDBenchError, match="row weights"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), weight=torch.ones(2, 1))
