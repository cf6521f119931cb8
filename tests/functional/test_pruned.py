from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional.pruned import distillation_weight, pruned_loss
from tests.functional.checks import check_empty, check_low_precision


def rows(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "pruned", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


def reference(ce: float, student: np.ndarray, teacher: np.ndarray, alpha: float, t: float, w: np.ndarray) -> float:
    total = 0.0
    for s, z, weight in zip(student, teacher, w, strict=True):
        p_s, p_t = (np.exp(v / t) / np.exp(v / t).sum() for v in (s, z))
        total += weight * sum(a * math.log(a / b) for a, b in zip(p_t, p_s, strict=True))
    return (1 - alpha) * ce + alpha * t * t * total / w.sum()


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 100)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_equation(shape, alpha, temperature, weighted):
    student, teacher, weight = rows(*shape)
    supervised = torch.tensor(1.7, dtype=torch.float64)
    value = pruned_loss(supervised, student, teacher, alpha, temperature, weight=weight if weighted else None)
    w = weight.numpy() if weighted else np.ones(shape[0])
    assert value.item() == pytest.approx(
        reference(1.7, student.numpy(), teacher.numpy(), alpha, temperature, w), rel=1e-6
    )


def test_the_weight_rises_as_the_share_falls():
    shares = [0.01, 0.1, 0.25, 0.5, 1.0]
    weights = [distillation_weight(share) for share in shares]
    assert weights == sorted(weights, reverse=True)
    assert all(0.5 <= weight < 1 for weight in weights)


def test_minimum_is_that_of_the_supervised_part():
    _, teacher, _ = rows(4, 5)
    assert pruned_loss(torch.tensor(2.0), teacher, teacher, 0.25).item() == pytest.approx(1.5)


def test_gradients():
    student, teacher, weight = rows(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: pruned_loss(s.square().mean(), s, teacher, 0.4, weight=weight), (student,)
    )


def test_low_precision_and_no_rows():
    student, teacher, _ = rows(32, 20)
    check_low_precision(lambda s, t: pruned_loss(torch.tensor(1.0), s, t, 0.5), student, teacher)
    check_empty(lambda s, t: pruned_loss(s.sum(), s, t, 0.5), (0, 5), (0, 5))
