"""``neighbour_product_loss`` and its gradient agree bit for bit, in float64 and float32, with ``Correlation`` of
HobbitLong/RepDistiller (BSD-2), run outside of this repository on (8, 16) and (64, 64)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.cc import correlation_congruence_loss, correlation_matrix, neighbour_product_loss
from tests.functional.checks import check_low_precision

LOSSES = (neighbour_product_loss, correlation_congruence_loss)


def embeddings(b: int, d: int, other: int | None = None) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "cc", b, d)
    return tuple(torch.randn(b, n, generator=g, dtype=torch.float64) for n in (d, other or d))


@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (16, 8)])
def test_neighbour_product(shape):
    student, teacher = embeddings(*shape)
    total = 0.0
    for i in range(shape[0] - 1):
        for d in range(shape[1]):
            total += abs(student[i, d] - teacher[i, d]).item() * abs(student[i + 1, d] - teacher[i + 1, d]).item()
    assert neighbour_product_loss(student, teacher).item() == pytest.approx(total / (shape[0] - 1), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 3, 7), (9, 8, 2)])
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.5, 5)])
def test_correlation_congruence(shape, gamma, order):
    student, teacher = embeddings(*shape)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        cosine = float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))

    n, s, t = shape[0], student.numpy(), teacher.numpy()
    expected = sum((kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(n) for j in range(n)) / n**2
    value = correlation_congruence_loss(student, teacher, gamma=gamma, order=order)
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_the_series_is_that_of_the_gaussian_kernel():
    unit = torch.nn.functional.normalize(embeddings(6, 4)[0], dim=1)
    torch.testing.assert_close(correlation_matrix(5 * unit, 0.7, 30), (-0.7 * torch.cdist(unit, unit).square()).exp())


@pytest.mark.parametrize("loss", LOSSES)
def test_minimum_and_gradients(loss):
    student, teacher = embeddings(5, 3)
    assert loss(teacher, teacher) == 0
    for side in (student, teacher):
        side.requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))
    grads = torch.autograd.grad(loss(student, teacher), (student, teacher))
    assert all(grad.abs().sum(1).min() > 0 for grad in grads)


def test_only_the_code_depends_on_the_order():
    student, teacher = embeddings(6, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert neighbour_product_loss(student, teacher) != pytest.approx(
        neighbour_product_loss(student[order], teacher[order]).item(), rel=1e-3
    )
    torch.testing.assert_close(
        correlation_congruence_loss(student, teacher), correlation_congruence_loss(student[order], teacher[order])
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision(loss):
    student, teacher = embeddings(32, 64)
    check_low_precision(loss, student, teacher)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [0, 1])
def test_too_few_samples(loss, size):
    student = torch.zeros(size, 5, requires_grad=True)
    value = loss(student, torch.zeros(size, 5))
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_errors():
    with pytest.raises(KDBenchError, match="neighbour_product_loss"):
        neighbour_product_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(KDBenchError, match="one batch size"):
        correlation_congruence_loss(torch.zeros(2, 3), torch.zeros(3, 3))
