from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.tinybert import attention_score_loss, attention_scores
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def scores(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "tinybert", *shape)
    student, teacher = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher


def test_the_softmax_of_scores_is_the_attention():
    g = rng.generator(0, "tinybert", "attention")
    q, k, v = torch.randn(3, 2, 3, 5, 4, generator=g, dtype=torch.float64)
    torch.testing.assert_close(attention_scores(q, k).softmax(-1) @ v, F.scaled_dot_product_attention(q, k, v))
    assert attention_scores(q.bfloat16(), k.bfloat16()).dtype == torch.float32


def test_matches_the_equation():
    student, teacher = scores(2, 3, 4, 4)
    looks = torch.tensor([[True] * 4, [True, True, True, False]])
    pairs = looks[:, None, :, None] & looks[:, None, None, :]
    found, count = 0.0, 0
    for b, length in enumerate((4, 3)):
        for h in range(3):
            for i in range(length):
                for j in range(length):
                    found += (student[b, h, i, j].item() - teacher[b, h, i, j].item()) ** 2
                    count += 1
    assert attention_score_loss(student, teacher, pairs).item() == pytest.approx(found / count, rel=1e-9)
    whole = attention_score_loss(student, teacher)
    assert whole.item() == pytest.approx(F.mse_loss(student, teacher).item(), rel=1e-9)
    assert not math.isclose(whole.item(), found / count)


def test_gradients_precision_and_edges():
    student, teacher = scores(1, 2, 3, 3)
    looks = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_score_loss(s, teacher, looks), (leaf,))
    attention_score_loss(leaf, teacher, looks).backward()
    assert leaf.grad is not None
    assert not leaf.grad[..., 0, 1:].any()
    check_low_precision(attention_score_loss, *scores(4, 2, 8, 8))
    check_autocast(attention_score_loss, *scores(2, 2, 3, 3))
    check_empty(attention_score_loss, (0, 2, 3, 3), (0, 2, 3, 3))
    assert attention_score_loss(student, teacher, ~looks & looks) == 0
    with pytest.raises(KDBenchError, match="attention_score_loss: the student has shape"):
        attention_score_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))
