"""Against the authors' released loss (outside of this repository, float64): equal to 3e-16, gradients to 2e-16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ofa import ofa_loss
from tests.functional.checks import check_empty, check_low_precision


def rows(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ofa", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(c, (n,), generator=g), torch.rand(n, generator=g, dtype=torch.float64)


def reference(
    student: np.ndarray, teacher: np.ndarray, target: np.ndarray, gamma: float, t: float, weight: np.ndarray
) -> float:
    total = 0.0
    for s, z, y, w in zip(student, teacher, target, weight, strict=True):
        p_s, p_t = (np.exp(v / t) / np.exp(v / t).sum() for v in (s, z))
        for c in range(len(s)):
            hit = 1.0 if c == y else 0.0
            total -= w * ((p_t[c] + hit) ** gamma - hit) * math.log(p_s[c])
    return total / weight.sum()


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 100)])
@pytest.mark.parametrize("gamma", [1.0, 1.5, 0.7])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_matches_the_equation(shape, gamma, temperature, weighted):
    student, teacher, target, weight = rows(*shape)
    value = ofa_loss(student, teacher, target, gamma, temperature=temperature, weight=weight if weighted else None)
    w = weight.numpy() if weighted else np.ones(shape[0])
    expected = reference(student.numpy(), teacher.numpy(), target.numpy(), gamma, temperature, w)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_minimum_at_the_enhanced_target():
    """At gamma = 1 that is the teacher; beyond, its mass on the true class grows."""
    _, teacher, target, _ = rows(5, 4)
    student = teacher.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ofa_loss(student, teacher, target, 1.0), student)
    assert grad.abs().max() < 1e-12
    (grad,) = torch.autograd.grad(ofa_loss(student, teacher, target, 1.5), student)
    assert (grad.gather(1, target[:, None]) < 0).all()


def test_gamma_trusts_a_sure_teacher_more():
    sure, unsure = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    target, student = torch.tensor([0]), torch.zeros(1, 2)
    gains = [ofa_loss(student, t, target, 1.5) - ofa_loss(student, t, target, 1.0) for t in (sure, unsure)]
    assert gains[0] > gains[1] > 0


def test_gradients():
    student, teacher, target, weight = rows(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ofa_loss(s, teacher, target, 1.5, weight=weight), (student,))


def test_every_option_changes_the_value():
    student, teacher, target, weight = rows(6, 5)
    options: list[dict] = [{}, {"gamma": 1.5}, {"temperature": 2.0}, {"weight": weight}]
    values = {round(ofa_loss(student, teacher, target, **o).item(), 9) for o in options}
    assert len(values) == len(options)


def test_low_precision():
    student, teacher, target, _ = rows(64, 100)
    check_low_precision(ofa_loss, student, teacher, target, 1.5)


def test_no_rows():
    check_empty(ofa_loss, (0, 5), (0, 5), torch.zeros(0, dtype=torch.long))


def test_errors():
    with pytest.raises(KDBenchError, match="ofa_loss"):
        ofa_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
