from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.distilbert import hidden_cosine_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def states(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "distilbert", n, d)
    student, teacher = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher


@pytest.mark.parametrize("shape", [(1, 2), (5, 7)])
def test_is_what_torch_makes_of_it(shape):
    """The authors' ``CosineEmbeddingLoss`` with the target 1."""
    student, teacher = states(*shape)
    expected = F.cosine_embedding_loss(student, teacher, torch.ones(shape[0]))
    torch.testing.assert_close(hidden_cosine_loss(student, teacher), expected)
    weight = torch.arange(1.0, shape[0] + 1, dtype=torch.float64)
    rows = F.cosine_embedding_loss(student, teacher, torch.ones(shape[0]), reduction="none")
    torch.testing.assert_close(hidden_cosine_loss(student, teacher, weight), (weight * rows).sum() / weight.sum())


def test_gradients_precision_and_edges():
    student, teacher = states(3, 4)
    assert torch.autograd.gradcheck(lambda s: hidden_cosine_loss(s, teacher), (student.requires_grad_(),))
    check_low_precision(hidden_cosine_loss, *states(64, 32))
    check_autocast(hidden_cosine_loss, *states(8, 5))
    check_empty(hidden_cosine_loss, (0, 5), (0, 5))
    with pytest.raises(KDBenchError, match="hidden_cosine_loss: the student has shape"):
        hidden_cosine_loss(torch.zeros(2, 3), torch.zeros(3, 3))
