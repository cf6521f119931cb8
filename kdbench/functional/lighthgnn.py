"""Predictions in common over hyperedges, of which those count on whose members noise has little effect."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, safe_mean, upcast


def hyperedge_mean(rows: Tensor, members: Tensor, count: int | None = None) -> Tensor:
    """Means over hyperedges.

    Args:
        rows: of nodes (N, D).
        members: nodes and hyperedges that they are in (2, K).
        count: hyperedges M; as many as are named by default.

    Returns:
        (M, D), float32 for low-precision input; zero for a hyperedge without a node.

    Example:
        >>> members = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]])
        >>> hyperedge_mean(torch.tensor([[0.0], [2.0], [4.0]]), members)
        tensor([[1.],
                [3.]])
    """
    nodes, edges = members
    many = (int(edges.max()) + 1 if len(edges) else 0) if count is None else count
    wide = upcast(rows)
    total = wide.new_zeros(many, wide.shape[1]).index_add(0, edges, wide.index_select(0, nodes))
    sizes = torch.bincount(edges, minlength=many).clamp_min(1).to(wide.dtype)
    return total / sizes[:, None]


def reliability(clean: Tensor, noised: Tensor, members: Tensor) -> Tensor:
    """How little the entropy over each hyperedge changes under noise: ``1 - |dH| / max |dH|``.

    Feng, Liu, Ying, Gao: LightHGNN: Distilling Hypergraph Neural Networks into MLPs for 100x Faster Inference (ICLR
    2024), the topology-aware reliability; H is the mean over a hyperedge of the entropies of its nodes' predictions.

    Args:
        clean: logits (N, C).
        noised: logits of the same nodes whose features have noise (N, C).
        members: nodes and hyperedges that they are in (2, K).

    Returns:
        (M,) from 0 to 1, of each hyperedge; ones where nothing changes.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> clean, noised = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> reliability(clean, noised, torch.tensor([[0, 1], [0, 1]]))
        tensor([1., 0.])
    """
    check_same_shape(clean, noised, "reliability")
    laws = [upcast(logits).log_softmax(1) for logits in (clean, noised)]
    first, second = (hyperedge_mean(-(law.exp() * law).sum(1, keepdim=True), members)[:, 0] for law in laws)
    apart = (first - second).abs()
    most = apart.max() if len(apart) else apart.sum()
    return torch.where(most > 0, 1 - apart / most.clamp_min(1e-12), 1.0)


def high_order_loss(
    student: Tensor, teacher: Tensor, members: Tensor, kept: Tensor, faithful: Faithful = "paper"
) -> Tensor:
    """Divergence of mean predictions over hyperedges: ``mean_e KL(p_t_e || p_s_e)`` over those that are kept.

    Feng, Liu, Ying, Gao: LightHGNN: Distilling Hypergraph Neural Networks into MLPs for 100x Faster Inference (ICLR
    2024), the high-order soft-target constraint, at temperature 1. The released code takes a probability for its
    logarithm: ``sum_c exp(p_t) (p_t - log p_s)``.

    Args:
        student: logits (N, C).
        teacher: logits of the same nodes (N, C).
        members: nodes and hyperedges that they are in (2, K).
        kept: which hyperedges count (M,), bool.
        faithful: ``paper`` or ``code``.

    Returns:
        A scalar, float32 for low-precision input; zero where none is kept.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> members, kept = torch.tensor([[0, 1], [0, 0]]), torch.tensor([True])
        >>> high_order_loss(torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [2.0, 0.0]]), members, kept)
        tensor(0.3278)
    """
    check_faithful(faithful)
    check_same_shape(student, teacher, "high_order_loss")
    laws = (upcast(logits).softmax(1) for logits in (student, teacher))
    ours, theirs = (hyperedge_mean(law, members, len(kept))[kept] for law in laws)
    small = torch.finfo(ours.dtype).tiny
    log_s = ours.clamp_min(small).log()
    if faithful == "code":
        return safe_mean((theirs.exp() * (theirs - log_s)).sum(1))
    return safe_mean((theirs * (theirs.clamp_min(small).log() - log_s)).sum(1))
