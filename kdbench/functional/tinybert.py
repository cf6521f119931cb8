"""Scores of attention before the softmax, and their squared error."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, full_precision, upcast, weighted_mean


def attention_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Returns the scaled products ``Q K^T / sqrt(D)`` of heads, before a softmax.

    Args:
        queries: (B, H, L, D).
        keys: (B, H, L, D).

    Returns:
        (B, H, L, L), float32 for low-precision input.

    Example:
        >>> import torch
        >>> attention_scores(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
        tensor([[[[2.]]]])
    """
    with full_precision(queries):
        return upcast(queries) @ upcast(keys).transpose(-1, -2) / queries.shape[-1] ** 0.5


def attention_score_loss(student: Tensor, teacher: Tensor, looks: Tensor | None = None) -> Tensor:
    """Mean squared error of scores of attention before the softmax, over heads and pairs of places that count.

    Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding (Findings of EMNLP 2020), eq. 7.

    Args:
        student: scores (B, H, L, L), as :func:`attention_scores` gives them.
        teacher: scores (B, H, L, L).
        looks: which places (last axis) a place looks at (B, 1, L, L), bool; None for all.

    Returns:
        A scalar, float32 for low-precision input; zero where nothing counts.

    Example:
        >>> import torch
        >>> attention_score_loss(torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 2.0))
        tensor(4.)
    """
    check_same_shape(student, teacher, "attention_score_loss")
    squared = (upcast(student) - upcast(teacher)).square()
    return weighted_mean(squared.flatten(), None if looks is None else looks.expand_as(squared).flatten())
