from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.minilm import relation_heads, relation_loss
from kdbench.functional.tinybert import attention_scores
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def scores(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "minilm", *shape)
    student, teacher = (2 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher


def softmax(row: list[float]) -> list[float]:
    parts = [math.exp(x) for x in row]
    return [x / sum(parts) for x in parts]


@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_equation(causal):
    """Padding is cut out of each text, as if it were of that length."""
    student, teacher = scores(2, 3, 4, 4)
    there = torch.tensor([[True] * 4, [True, True, True, False]])
    looks = there[:, None, :, None] & there[:, None, None, :]
    found, count = 0.0, 0
    for b, length in enumerate((4, 3)):
        for h in range(3):
            for i in range(length):
                end = i + 1 if causal else length
                p, q = (softmax(x[b, h, i, :end].tolist()) for x in (teacher, student))
                found += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
                count += 1
    loss = relation_loss(student, teacher, looks.tril() if causal else looks)
    assert loss.item() == pytest.approx(found / count, rel=1e-9)


def test_relation_heads_are_those_of_the_joined_width():
    g = rng.generator(0, "minilm", "heads")
    parts = torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64)
    assert torch.equal(relation_heads(parts, 3), parts)
    (one,) = (relation_heads(parts, 1)[:, 0],)
    assert torch.equal(one[..., 4:8], parts[:, 1])
    # One head of all: its products are the sum of those of the heads.
    whole = attention_scores(one[:, None], one[:, None])[:, 0] * 12**0.5
    torch.testing.assert_close(whole, (attention_scores(parts, parts) * 2).sum(1))
    with pytest.raises(KDBenchError, match="found 5 relation heads and a width of 12"):
        relation_heads(parts, 5)


def test_equal_relations_have_no_loss_and_it_is_not_negative():
    student, teacher = scores(2, 2, 3, 3)
    assert relation_loss(student, student + 7).item() == pytest.approx(0, abs=1e-12)
    assert relation_loss(student, teacher) > 0


def test_gradients_precision_and_edges():
    student, teacher = scores(2, 2, 3, 3)
    looks = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    looks[1, :, 2] = False  # padding
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: relation_loss(s, teacher, looks), (leaf,))
    relation_loss(leaf, teacher, looks).backward()
    assert leaf.grad is not None
    assert not leaf.grad[~looks.expand_as(leaf)].any()
    check_low_precision(relation_loss, *scores(4, 2, 8, 8))
    check_autocast(relation_loss, *scores(2, 2, 3, 3))
    check_empty(relation_loss, (0, 2, 3, 3), (0, 2, 3, 3))
    assert relation_loss(student, teacher, looks & False) == 0
    with pytest.raises(KDBenchError, match="relation_loss: the student has shape"):
        relation_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))
