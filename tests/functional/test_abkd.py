from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from kdbench.functional.abkd import alpha_beta_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.rkl import reverse_kl_loss
from tests.functional.laws import check, kl, logits


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.2, 0.7), (1.5, -0.3), (-0.5, 1.2), (2.0, 1.0)])
def test_matches_the_equation(a, b):
    def pair(p, q):
        return -sum(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)

    check(partial(alpha_beta_loss, alpha=a, beta=b), pair)


@pytest.mark.parametrize(
    ("a", "b", "pair"),
    [
        (1.0, 0.0, kl),
        (0.0, 1.0, lambda p, q: kl(q, p)),
        (0.0, 0.0, lambda p, q: 0.5 * sum((np.log(p) - np.log(q)) ** 2)),
        (0.5, 0.5, lambda p, q: 2 * sum((np.sqrt(p) - np.sqrt(q)) ** 2)),
        (2.0, 0.0, lambda p, q: sum(p**2 * np.log(p**2 / q**2) - p**2 + q**2) / 4),
        (0.0, 2.0, lambda p, q: sum(q**2 * np.log(q**2 / p**2) - q**2 + p**2) / 4),
        (0.7, -0.7, lambda p, q: sum(np.log(q**0.7 / p**0.7) + p**0.7 / q**0.7 - 1) / 0.49),
    ],
)
def test_matches_its_special_cases(a, b, pair):
    check(partial(alpha_beta_loss, alpha=a, beta=b), pair)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.6, -0.6), (2.0, 0.0), (0.0, 0.4)])
def test_the_special_cases_are_limits(a, b):
    student, teacher, _ = logits(4, 6)
    near = alpha_beta_loss(student, teacher, a + 3e-5, b + 4e-5)
    torch.testing.assert_close(near, alpha_beta_loss(student, teacher, a, b), rtol=1e-3, atol=0)


def test_the_corners_are_the_two_divergences():
    student, teacher, _ = logits(4, 6)
    torch.testing.assert_close(alpha_beta_loss(student, teacher, 1.0, 0.0), kd_loss(student, teacher, 1.0))
    torch.testing.assert_close(alpha_beta_loss(student, teacher, 0.0, 1.0), reverse_kl_loss(student, teacher))


def test_a_student_without_any_probability_has_a_gradient():
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    alpha_beta_loss(student, torch.tensor([[0.0, 1.0, 0.0]]), 0.5, 0.5).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
