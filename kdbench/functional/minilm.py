"""Relations between the places of a text, as a layer of attention has them."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def relation_heads(parts: Tensor, heads: int) -> Tensor:
    """Joins the heads of queries, keys or values and splits them anew into relation heads.

    Wang, Bao, Huang, Dong & Wei, MiniLMv2 (Findings of ACL 2021), section 3.1: so that networks of other numbers of
    heads have as many relations.

    Args:
        parts: (B, H, L, D).
        heads: A, how many; they divide H * D.

    Returns:
        (B, A, L, H * D / A).

    Raises:
        KDBenchError: They do not divide it.

    Example:
        >>> relation_heads(torch.zeros(2, 3, 5, 4), 6).shape
        torch.Size([2, 6, 5, 2])
    """
    joined = parts.transpose(1, 2).flatten(2)
    if joined.shape[2] % heads:
        raise KDBenchError(f"found {heads} relation heads and a width of {joined.shape[2]}, expected a divisor of it")
    return joined.unflatten(2, (heads, -1)).transpose(1, 2)


def relation_loss(student: Tensor, teacher: Tensor, looks: Tensor | None = None) -> Tensor:
    """``mean_bhi KL(softmax_j t || softmax_j s)`` of scaled products of places i and j, over those that are looked at.

    Wang et al., MiniLM (NeurIPS 2020), of queries with keys, which is the attention itself, and of values; MiniLMv2, of
    queries, of keys and of values. Widths of heads may differ, their number may not.

    Args:
        student: scaled products (B, H, L, L), as :func:`~kdbench.functional.tinybert.attention_scores` gives them.
        teacher: scaled products (B, H, L, L).
        looks: which places (last axis) a place looks at (B, 1, L, L), bool; None for all. A place that looks at none,
            such as padding, does not count.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero where nothing counts.

    Example:
        >>> scores = torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])
        >>> relation_loss(torch.zeros(1, 1, 2, 2), scores)
        tensor(0.1639)
    """
    check_same_shape(student, teacher, "relation_loss")
    student, teacher = upcast(student), upcast(teacher)
    if looks is None:
        looks = torch.ones_like(student[:, :1], dtype=torch.bool)
    shut = ~looks
    log_s, log_t = (x.masked_fill(shut, torch.finfo(x.dtype).min).log_softmax(-1) for x in (student, teacher))
    apart = torch.where(looks, log_t.exp() * (log_t - log_s), 0.0).sum(-1)
    return weighted_mean(apart.flatten(), looks.any(-1).expand_as(apart).flatten())
