from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.kd import kd_loss
from kdbench.functional.swing import private_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def rows(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "swing", n, c)
    student, teacher = (2 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    temperature = 1 + 3 * torch.rand(n, generator=g, dtype=torch.float64)
    return student, teacher, temperature, torch.rand(n, c, generator=g, dtype=torch.float64)


def softmax(row: list[float], temperature: float) -> list[float]:
    parts = [math.exp(x / temperature) for x in row]
    return [x / sum(parts) for x in parts]


def test_matches_the_equation():
    student, teacher, temperature, noise = rows(5, 4)
    found = 0.0
    for s, t, temp, extra in zip(*(x.tolist() for x in (student, teacher, temperature, noise)), strict=True):
        p, q = softmax(s, temp), [a + b for a, b in zip(softmax(t, temp), extra, strict=True)]
        q = [x / sum(q) for x in q]
        found += temp**2 * sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)) / 5
    assert private_loss(student, teacher, temperature, noise).item() == pytest.approx(found, rel=1e-9)


def test_at_one_temperature_it_is_distillation():
    student, teacher, _, weight = rows(5, 4)
    found = private_loss(student, teacher, torch.full((5,), 3.0), weight=weight[:, 0])
    torch.testing.assert_close(found, kd_loss(student, teacher, 3.0, weight=weight[:, 0]))


def test_gradients_precision_and_edges():
    student, teacher, temperature, noise = rows(3, 4)
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: private_loss(s, teacher, temperature, noise), (leaf,))
    check_low_precision(private_loss, *rows(64, 20)[:3])
    check_autocast(private_loss, *rows(8, 5)[:3])
    check_empty(private_loss, (0, 5), (0, 5), (0,))
    with pytest.raises(KDBenchError, match="private_loss: the student has shape"):
        private_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2))
