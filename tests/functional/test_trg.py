from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.trg import neighbour_mask, token_context_loss, token_global_loss, token_local_loss
from tests.functional.checks import check_low_precision

SHAPES = [(2, 3, 4), (6, 2, 2), (9, 5, 3)]


def tokens(*shape: int, name: str = "s") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "trg", name, *shape), dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    exp = [math.exp(v) for v in row]
    return [v / sum(exp) for v in exp]


def edges(t: np.ndarray, near: list[set[int]], sigma: float, temperature: float) -> list[list[float]]:
    n = len(t)
    a = [[0.0] * n for _ in range(n)]
    for j in range(n):
        for i in near[j]:
            a[i][j] = math.exp(-sum((x - y) ** 2 for x, y in zip(t[i], t[j], strict=True)) / (2 * sigma)) / temperature
    return a


def nearest(t: np.ndarray, k: int) -> list[set[int]]:
    found = []
    for j in range(len(t)):
        others = [i for i in range(len(t)) if i != j]
        found.append(set(sorted(others, key=lambda i: float(((t[i] - t[j]) ** 2).sum()))[:k]))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("k", "sigma", "temperature"), [(1, 0.5, 1.0), (3, 2.0, 0.1), (99, 0.5, 0.5)])
def test_local_matches_the_equation(shape, k, sigma, temperature):
    n, d_s, d_t = shape
    student, teacher = tokens(n, d_s), tokens(n, d_t, name="t")
    near = nearest(teacher.numpy(), k)
    of_s, of_t = (edges(t.numpy(), near, sigma, temperature) for t in (student, teacher))
    total = 0.0
    for row_s, row_t in zip(of_s, of_t, strict=True):
        total += sum(a * math.log(a / b) for a, b in zip(softmax(row_s), softmax(row_t), strict=True))
    value = token_local_loss(student, teacher, k, sigma, temperature)
    assert value.item() == pytest.approx(total / n, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_global_matches_the_equation(shape, temperature):
    n, d, _ = shape
    student, teacher = tokens(n, d), tokens(n, d, name="t")
    s, t = student.numpy(), teacher.numpy()
    total = 0.0
    for i in range(n):
        cosine = [float(s[i] @ t[j] / math.sqrt(s[i] @ s[i]) / math.sqrt(t[j] @ t[j])) for j in range(n)]
        total -= math.log(softmax([c / temperature for c in cosine])[i])
    assert token_global_loss(student, teacher, temperature).item() == pytest.approx(total / n, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_context_matches_the_equation(shape):
    length, d_s, d_t = shape
    student, teacher = tokens(3, length, d_s), tokens(3, length, d_t, name="t")
    total = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        for i in range(length):
            rows = [softmax([float(f[i] @ f[j]) / math.sqrt(f.shape[1]) for j in range(length)]) for f in (s, t)]
            total += sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    assert token_context_loss(student, teacher).item() == pytest.approx(total / (3 * length**2), rel=1e-6)


def test_each_token_has_its_k_nearest_and_never_itself():
    mask = neighbour_mask(tokens(12, 3), 4)
    assert (mask.sum(0) == 4).all()
    assert not mask.diagonal().any()
    assert neighbour_mask(tokens(3, 2), 9).sum() == 6


def test_minimum():
    teacher = tokens(8, 4)
    assert token_local_loss(teacher, teacher, 3) == pytest.approx(0, abs=1e-12)
    assert token_context_loss(teacher[None], teacher[None]) == 0
    # Similarities alone are compared: a rotation changes nothing.
    rotation = torch.linalg.qr(tokens(4, 4, name="q")).Q
    assert token_local_loss(teacher @ rotation, teacher, 3) == pytest.approx(0, abs=1e-12)
    assert token_context_loss((teacher @ rotation)[None], teacher[None]) == pytest.approx(0, abs=1e-12)
    # The contrastive term has no zero, but each token finds its own in the limit.
    assert token_global_loss(3 * teacher, teacher, 1e-3) == pytest.approx(0, abs=1e-6)
    assert token_global_loss(teacher, teacher) < token_global_loss(teacher.flip(0), teacher)


def test_gradients():
    student, teacher = tokens(5, 3).requires_grad_(), tokens(5, 3, name="t")
    assert torch.autograd.gradcheck(lambda s: token_local_loss(s, teacher, 2, 1.0, 0.5), (student,))
    assert torch.autograd.gradcheck(lambda s: token_global_loss(s, teacher), (student,))
    assert torch.autograd.gradcheck(lambda s: token_context_loss(s[None], teacher[None]), (student,))


def test_every_option_changes_the_value():
    student, teacher = tokens(9, 3), tokens(9, 3, name="t")
    options: list[dict] = [{}, {"k": 5}, {"sigma": 1.0}, {"temperature": 0.2}]
    local = {round(token_local_loss(student, teacher, **{"k": 2, **o}).item(), 9) for o in options}
    assert len(local) == len(options)
    assert token_global_loss(student, teacher, 0.1) != token_global_loss(student, teacher, 0.2)


def test_dead_tokens_give_no_nan():
    student, teacher = torch.zeros(4, 3, requires_grad=True), tokens(4, 3).float()
    value = token_local_loss(student, teacher, 2) + token_global_loss(student, teacher)
    (value + token_context_loss(student[None], teacher[None])).backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_low_precision():
    student, teacher = tokens(32, 16), tokens(32, 16, name="t")
    low, near = (student.bfloat16(), teacher.bfloat16()), (student.bfloat16().double(), teacher.bfloat16().double())
    for loss in (lambda s, t: token_local_loss(s, t, 4, 16.0), token_global_loss):
        assert loss(*low).dtype == torch.float32
        assert loss(*low).item() == pytest.approx(loss(*near).item(), rel=0.02)
    check_low_precision(token_context_loss, student[None], teacher[None], rel=0.05)


@pytest.mark.parametrize("n", [0, 1])
def test_no_token_and_a_single_one(n):
    student = torch.ones(n, 3, requires_grad=True)
    value = token_local_loss(student, torch.ones(n, 3), 4) + token_global_loss(student, torch.ones(n, 3))
    value = value + token_context_loss(student[None], torch.ones(1, n, 3))
    value.backward()
    assert value == 0
    assert student.grad is not None


def test_errors():
    with pytest.raises(KDBenchError, match="common grid"):
        token_local_loss(torch.zeros(2, 3), torch.zeros(3, 3), 1)
    with pytest.raises(KDBenchError, match="common grid"):
        token_context_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4))
    with pytest.raises(KDBenchError, match="token_global_loss"):
        token_global_loss(torch.zeros(2, 3), torch.zeros(2, 4))
