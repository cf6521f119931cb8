from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ssld import label_free_divergence, surest

DIVERGENCES: list[Any] = ["js", "symmetric_kl", "soft_ce"]
LAWS: list[Any] = ["categorical", "bernoulli"]


def logits(n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "ssld", n, c)
    student, teacher = (3 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher


def laws(row: np.ndarray, law: str) -> list[list[float]]:
    if law == "categorical":
        exp = [math.exp(v) for v in row]
        return [[v / sum(exp) for v in exp]]
    return [[1 / (1 + math.exp(-v)), 1 / (1 + math.exp(v))] for v in row]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def reference(s: np.ndarray, t: np.ndarray, divergence: str, law: str) -> float:
    total = 0.0
    for p, q in zip(laws(s, law), laws(t, law), strict=True):
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        total += {
            "js": kl(p, m) / 2 + kl(q, m) / 2,
            "symmetric_kl": kl(p, q) / 2 + kl(q, p) / 2,
            "soft_ce": -sum(b * math.log(a) for a, b in zip(p, q, strict=True)),
        }[divergence]
    return total


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 100)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("law", LAWS)
def test_matches_the_equations(shape, divergence, law):
    student, teacher = logits(*shape)
    values = label_free_divergence(student, teacher, divergence, law)
    expected = [reference(s, t, divergence, law) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("law", LAWS)
def test_minimum_at_the_teacher(divergence, law):
    _, teacher = logits(5, 4)
    student = teacher.clone().requires_grad_()
    value = label_free_divergence(student, teacher, divergence, law).sum()
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    if divergence != "soft_ce":
        assert value.item() == pytest.approx(0, abs=1e-12)


def test_js_is_bounded_and_stays_finite():
    student = torch.tensor([[500.0, -500.0]], requires_grad=True)
    value = label_free_divergence(student, -student.detach()).sum()
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("law", LAWS)
def test_gradients(divergence, law):
    student, teacher = logits(3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: label_free_divergence(s, teacher, divergence, law), (student,))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_low_precision_and_no_rows(divergence):
    student, teacher = logits(64, 50)
    low = label_free_divergence(student.bfloat16(), teacher.bfloat16(), divergence)
    assert low.dtype == torch.float32
    assert low.mean().item() == pytest.approx(
        label_free_divergence(student, teacher, divergence).mean().item(), rel=0.02
    )
    assert label_free_divergence(torch.zeros(0, 5), torch.zeros(0, 5), divergence).shape == (0,)


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (20, 3), (50, 10)])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_surest_are_the_first_of_each_class(n, classes, keep):
    g = rng.generator(0, "surest", n)
    confidence, predicted = torch.rand(n, generator=g), torch.randint(classes, (n,), generator=g)
    chosen = surest(confidence, predicted, keep)
    for c in range(classes):
        members = sorted((i for i in range(n) if predicted[i] == c), key=lambda i: -float(confidence[i]))
        first = set(members[: math.ceil(keep * len(members))])
        assert {i for i in members if chosen[i]} == first


def test_surest_of_nothing():
    assert surest(torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5).shape == (0,)


def test_errors():
    with pytest.raises(KDBenchError, match="did you mean 'js'"):
        label_free_divergence(torch.zeros(2, 3), torch.zeros(2, 3), "jss")  # type: ignore[arg-type]
    with pytest.raises(KDBenchError, match="label_free_divergence"):
        label_free_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
