"""Loss, gradients of features and embeddings, and the banks after each of three steps agree with ``CRDLoss`` of
HobbitLong/RepDistiller (BSD-2; the authors'), run outside of this repository on the same negatives with N, B, K of
(300, 8, 64), (2000, 32, 512) and (1000, 16, 999): to 4e-12 (gradients 3e-10) in float64, 4e-6 (8e-7) in float32."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional import crd as module
from kdbench.functional.crd import contrast_logits, draw_negatives, log_normalizer, momentum_update, nce_loss
from tests.functional.checks import check_empty, check_low_precision


def tensors(b: int, n: int, k: int, d: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "crd", b, n, k, d)
    embedding, bank = (torch.randn(size, d, generator=g, dtype=torch.float64) for size in (b, n))
    return embedding, bank, torch.randint(n, (b, 1 + k), generator=g)


def reference(embedding: np.ndarray, bank: np.ndarray, index: np.ndarray, t: float, z: float | None) -> float:
    """Scores of one anchor at a time, eq. 18 with the estimator of the code."""
    n, k = len(bank), index.shape[1] - 1
    scores = [[math.exp(float(v @ bank[j]) / t) for j in row] for v, row in zip(embedding, index, strict=True)]
    z = z or n * sum(map(sum, scores)) / (len(scores) * (k + 1))
    total = 0.0
    for row in scores:
        p = [score / z for score in row]
        total -= math.log(p[0] / (p[0] + k / n + 1e-7))
        total -= sum(math.log((k / n) / (q + k / n + 1e-7)) for q in p[1:])
    return total / len(scores)


@pytest.mark.parametrize("shape", [(1, 5, 1, 3), (4, 9, 8, 2), (3, 50, 20, 16)])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("z", [None, 40.0])
def test_matches_the_equations(shape, temperature, z):
    embedding, bank, index = tensors(*shape)
    logits = contrast_logits(embedding, bank, index, temperature)
    log_z = log_normalizer(logits, len(bank)) if z is None else math.log(z)
    expected = reference(embedding.numpy(), bank.numpy(), index.numpy(), temperature, z)
    assert nce_loss(logits - log_z, len(bank)).item() == pytest.approx(expected, rel=1e-6)


def test_small_scores_are_not_rounded_away():
    """Ten thousand noise terms of 1e-8 each: a logarithm of their ratio to one, in float32, would lose them."""
    logits = torch.full((1, 10_001), math.log(1e-8))
    logits[0, 0] = 0
    exact = math.log1p((1 + 1e-12) / 1.0) + 10_000 * math.log1p((1e-8 + 1e-12) / 1.0)
    assert nce_loss(logits, 10_000, eps=1e-12).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 100])
def test_chunks_change_nothing(chunk, monkeypatch):
    embedding, bank, index = tensors(7, 40, 6, 5)
    embedding.requires_grad_()
    whole = contrast_logits(embedding, bank, index)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    parts = contrast_logits(embedding, bank, index)
    torch.testing.assert_close(parts, whole)
    grads = [torch.autograd.grad(x.square().sum(), embedding)[0] for x in (whole, parts)]
    torch.testing.assert_close(*grads)


def test_gradients_and_direction():
    embedding, bank, index = tensors(3, 8, 4, 4)
    embedding.requires_grad_()

    def loss(v: torch.Tensor) -> torch.Tensor:
        return nce_loss(contrast_logits(v, bank, index, 1.0) - 2.0, len(bank))

    assert torch.autograd.gradcheck(loss, (embedding,))
    # A step against the gradient is one towards the positive entry for a single far negative.
    v, two = torch.tensor([[0.6, 0.8]], requires_grad=True), torch.eye(2)
    (gradient,) = torch.autograd.grad(nce_loss(contrast_logits(v, two, torch.tensor([[0, 1]]), 1.0), 2), v)
    assert gradient[0, 0] < 0 < gradient[0, 1]


def test_negatives_are_of_other_classes():
    classes = torch.tensor([2, 0, 1, -1, 0, 2, -1, 1])
    ids = torch.tensor([1, 3, 0])
    drawn = draw_negatives(classes, ids, 4000, rng.generator(0, "draw"))
    allowed = [{0, 2, 3, 5, 6, 7}, {0, 1, 2, 4, 5, 6, 7}, {1, 2, 3, 4, 6, 7}]
    for row, others in zip(drawn.tolist(), allowed, strict=True):
        counts = Counter(row)
        assert set(counts) == others
        assert all(abs(n - 4000 / len(others)) < 5 * (4000 / len(others)) ** 0.5 for n in counts.values())
    again = draw_negatives(classes, ids, 4000, rng.generator(0, "draw"))
    assert torch.equal(drawn, again)


def test_negatives_where_there_is_little_to_draw_from():
    generator = rng.generator(0, "draw")
    same = draw_negatives(torch.zeros(4, dtype=torch.long), torch.tensor([1, 2]), 50, generator)
    assert set(same[0].tolist()) == {0, 2, 3}
    assert set(same[1].tolist()) == {0, 1, 3}
    assert draw_negatives(torch.tensor([0]), torch.tensor([0]), 0, generator).shape == (1, 0)
    assert draw_negatives(torch.tensor([0, 1]), torch.tensor([], dtype=torch.long), 3, generator).shape == (0, 3)


def test_no_negatives_and_no_rows():
    assert nce_loss(torch.tensor([[5.0]]), 1) == pytest.approx(0, abs=1e-8)

    def loss(embedding):
        logits = contrast_logits(embedding, torch.ones(5, 4), torch.zeros(0, 3, dtype=torch.long))
        return nce_loss(logits - log_normalizer(logits, 5), 5)

    check_empty(loss, (0, 4))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum(momentum):
    entries, embedding = tensors(4, 4, 1, 3)[:2]
    moved = momentum * entries + (1 - momentum) * embedding
    expected = torch.stack([row / row.square().sum().sqrt() for row in moved])
    torch.testing.assert_close(momentum_update(entries, embedding, momentum), expected)


def test_low_precision():
    embedding, bank, index = tensors(8, 60, 30, 16)
    unit, entries = (torch.nn.functional.normalize(x, dim=1) for x in (embedding, bank))

    def loss(unit, entries):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return nce_loss(contrast_logits(unit, entries, index) - 10, 60)

    check_low_precision(loss, unit, entries, rel=0.05)
    assert momentum_update(entries.bfloat16(), entries.bfloat16()).dtype == torch.float32
