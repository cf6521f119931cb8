"""PointDistiller: which positions to distil, how much each counts, and the distance between local graphs.

Zhang, Dong, Tai & Ma, PointDistiller: Structured Knowledge Distillation Towards Efficient and Compact 3D Detection
(CVPR 2023). The graphs themselves are in ``kdbench.functional.graph``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, safe_mean, upcast, weighted_mean

Importance = Literal["count", "channel_max"]
Mode = Literal["top", "bottom", "random", "mixed"]


def importance(by: Importance, *, counts: Tensor | None = None, feature: Tensor | None = None) -> Tensor:
    """Importance of every position.

    The paper takes the number of points in a voxel or pillar for voxel detectors, and for point detectors the largest
    channel of the teacher's feature. (The released code takes the channel maximum for SECOND and nuScenes as well.) The
    channel maximum of a local graph is the paper's reweighting score of point detectors.

    Args:
        by: ``"count"`` or ``"channel_max"``.
        counts: points per position (M,), for ``"count"``.
        feature: (M, C), or graphs (M, K, D) whose maximum runs over both axes, for ``"channel_max"``.

    Returns:
        (M,), float32 or wider.

    Example:
        >>> importance("channel_max", feature=torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
        tensor([3., 2.])
    """
    source = {"count": counts, "channel_max": feature}
    if by not in source:
        raise KDBenchError(f"importance={by!r} is unknown; {nearest(str(by), source)}")
    values = source[by]
    if values is None:
        given = "counts" if by == "count" else "feature"
        raise KDBenchError(f"importance={by!r} needs {given}=, which this task does not give; use the other kind")
    return upcast(values if by == "count" else values.flatten(1).amax(dim=1))


def select(
    score: Tensor,
    n: int,
    mode: Mode = "top",
    *,
    batch: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Chooses up to ``n`` positions, of the whole batch or of every sample.

    Args:
        score: importance of every position (M,).
        n: positions to choose; all are kept where there are fewer.
        mode: ``"top"`` and ``"bottom"`` take the highest and the lowest importance (ties: the lower and the higher
            index), ``"random"`` draws without replacement, ``"mixed"`` takes half from the top, rounded up, and the
            rest from the bottom.
        batch: sample of each position (M,), integers from 0. With it, ``n`` counts per sample; without it (the released
            PointPillars code), over the whole batch, so that dense samples get more.
        generator: for ``"random"``.

    Returns:
        Indices (<= n,) or (<= n * samples,), int64: by sample, then from the highest importance to the lowest.

    Example:
        >>> score = torch.tensor([5.0, 1.0, 9.0, 2.0])
        >>> select(score, 2), select(score, 1, batch=torch.tensor([0, 0, 1, 1]))
        (tensor([2, 0]), tensor([0, 2]))
    """
    if mode not in ("top", "bottom", "random", "mixed"):
        raise KDBenchError(f"mode={mode!r} is unknown; {nearest(str(mode), ('top', 'bottom', 'random', 'mixed'))}")
    key = score
    if mode == "random":
        if generator is None:
            raise KDBenchError(
                "select: mode='random' was given no generator, expected one from kdbench.base.rng.generator"
            )
        key = torch.rand(len(score), generator=generator, device=generator.device).to(score.device)
    order = key.argsort(descending=True, stable=True)
    rank = torch.arange(len(order), device=order.device)
    size: Tensor | int = len(order)
    if batch is not None:
        order = order[batch[order].argsort(stable=True)]
        sizes = torch.bincount(batch)
        sample = batch[order]
        rank = rank - (sizes.cumsum(0) - sizes)[sample]
        size = sizes[sample]
    best = {"top": n, "random": n, "bottom": 0, "mixed": n - n // 2}[mode]
    return order[(rank < best) | (rank >= size - (n - best))]


def reweight(score: Tensor, temperature: float, batch: Tensor | None = None) -> Tensor:
    """Weights of the selected positions, ``phi = softmax(score / temperature)``.

    Detach a score that comes from a trained layer: otherwise that layer learns to look away from hard graphs. Point
    counts at the released temperature of 0.01 give all weight to the positions at the maximum; 5 to 30 is a real
    weighting.

    Args:
        score: (N,) of the selected positions, counts or ``importance(...)``.
        temperature: tau > 0.
        batch: sample of each position (N,), integers from 0. With it the softmax runs within each sample.

    Returns:
        phi (N,), summing to one over all positions or over each sample; float32 or wider.

    Example:
        >>> reweight(torch.tensor([0.0, 0.0, 3.0]), temperature=1.0, batch=torch.tensor([0, 0, 1]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    score = upcast(score) / temperature
    if batch is None:
        return score.softmax(dim=0)
    samples = int(batch.max()) + 1 if len(batch) else 0
    highest = score.new_zeros(samples).scatter_reduce(0, batch, score.detach(), "amax", include_self=False)
    exp = (score - highest[batch]).exp()
    return exp / exp.new_zeros(samples).index_add(0, batch, exp)[batch]


def local_graph_loss(
    graph_s: Tensor,
    graph_t: Tensor,
    phi: Tensor | None = None,
    faithful: Faithful = "code",
) -> Tensor:
    """Distance between the student's and the teacher's local graphs, weighted by importance.

    ``weigh_distances`` of ``d_i``, the mean squared difference of graph i over its K * D elements: the paper writes a
    norm ``||G_i^T - G_i^S||`` and its author names the MSE.

    Args:
        graph_s: student graphs (N, K, D), or (N, D) where pooled over the neighbours.
        graph_t: teacher graphs of the same shape.
        phi: weights (N,) from ``reweight``; None for equal weights.
        faithful: ``"paper"`` or ``"code"``, see ``weigh_distances``.

    Returns:
        A scalar, float32 for low-precision input; zero for no graphs.

    Example:
        >>> graph_s, graph_t = torch.zeros(2, 3, 4), torch.tensor([1.0, 3.0])[:, None, None].expand(2, 3, 4)
        >>> local_graph_loss(graph_s, graph_t), local_graph_loss(graph_s, graph_t, torch.tensor([0.75, 0.25]))
        (tensor(10.), tensor(6.))
    """
    check_same_shape(graph_s, graph_t, "local_graph_loss")
    squared = (upcast(graph_s) - upcast(graph_t)).square().flatten(1)
    return weigh_distances(squared.sum(dim=1) / max(squared.shape[1], 1), phi, faithful)


def weigh_distances(distance: Tensor, phi: Tensor | None = None, faithful: Faithful = "code") -> Tensor:
    """Brings the distances of all graphs into one loss; N is the number of graphs.

    * ``paper``: ``(1/N) sum_i phi_i d_i``, and ``(1/N) sum_i d_i`` without phi. As phi sums to one, reweighting also
      divides the loss by about N.
    * ``code``: ``2 sum_i phi_i d_i / sum_i phi_i``, and ``(2/N) sum_i d_i`` without phi. For one softmax over the
      batch this is the released ``2 * mean(mse * softmax(score / tau) * N)``; with a softmax per sample, its mean over
      the samples. (Where the released code turns reweighting off it uses a plain norm with a weight of its own, which
      is not offered.)

    So ``code = 2 N * paper`` with one softmax over the batch, ``2 N / B * paper`` with one per sample (B samples), and
    ``2 * paper`` without phi. The released weight of 1 belongs to ``code``.

    Args:
        distance: d (N,), such as ``graph.edge_distances`` gives.
        phi: non-negative weights (N,) from ``reweight``; None for equal weights.
        faithful: ``"paper"`` or ``"code"``.

    Returns:
        A scalar; zero for no graphs.

    Example:
        >>> distance, phi = torch.tensor([1.0, 9.0]), torch.tensor([0.75, 0.25])
        >>> weigh_distances(distance, phi, "paper"), weigh_distances(distance, phi, "code")
        (tensor(1.5000), tensor(6.))
    """
    check_faithful(faithful)
    if faithful == "code":
        return 2 * weighted_mean(distance, phi)
    return safe_mean(distance if phi is None else distance * phi)
