"""Laws written out, for the references of divergences of whole laws: plain float64 NumPy, one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tests.functional.checks import check_autocast, check_empty, check_low_precision

Pair = Callable[[np.ndarray, np.ndarray], float]
LAWS = ["categorical", "bernoulli"]


def logits(n: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of student and teacher, and weights of rows."""
    g = rng.generator(0, "laws", n, c)
    student, teacher = (2 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(x * np.log(x / y) for x, y in zip(p, q, strict=True)))


def mean(student: Tensor, teacher: Tensor, pair: Pair, temperature: float, law: str, weight: Tensor | None) -> float:
    """``T^2`` times the weighted mean over rows of ``pair(teacher's law, student's law)``."""
    total, weights = 0.0, np.ones(len(student)) if weight is None else weight.numpy()
    for z_s, z_t, w in zip(student.numpy() / temperature, teacher.numpy() / temperature, weights, strict=True):
        if law == "categorical":
            p, q = (np.exp(z) / np.exp(z).sum() for z in (z_t, z_s))
            total += w * pair(p, q)
        else:
            yes = [1 / (1 + np.exp(-z)) for z in (z_t, z_s)]
            total += w * sum(pair(np.array([a, 1 - a]), np.array([b, 1 - b])) for a, b in zip(*yes, strict=True))
    return temperature**2 * total / weights.sum()


def check(loss: Callable[..., Tensor], pair: Pair, laws: list[str] = LAWS, zero: bool = True) -> None:
    """Value, gradient, precision, edges and errors of a divergence of two laws."""
    for shape in [(1, 2), (5, 3), (4, 40)]:
        student, teacher, weight = logits(*shape)
        for law in laws:
            for temperature, weights in ((1.0, None), (2.5, weight)):
                value = loss(student, teacher, temperature=temperature, law=law, weight=weights)
                expected = mean(student, teacher, pair, temperature, law, weights)
                assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-12), (shape, law)
                assert value.item() >= 0
    student, teacher, weight = logits(3, 4)
    for law in laws:
        leaf = student.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda s, law=law: loss(s, teacher, law=law, weight=weight), (leaf,))
        if zero:
            same = teacher.clone().requires_grad_()
            value = loss(same, teacher, law=law)
            value.backward()
            assert value.item() == pytest.approx(0, abs=1e-12)
            assert same.grad is not None
            assert same.grad.abs().max() < 1e-8
    check_low_precision(loss, *logits(64, 50)[:2])
    check_autocast(loss, *logits(8, 5)[:2])
    check_empty(loss, (0, 5), (0, 5))
    with pytest.raises(KDBenchError, match=r"\(2, 3\).*\(2, 4\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(KDBenchError, match=r"law='gauss'|found law='gauss'"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), law="gauss")
