"""Local graphs over points, voxels or pillars: nearest neighbours, edge features and distances between graphs.

An edge feature of EdgeConv type is a linear map of ``[centre; neighbour]``. It splits into ``W_c centre + W_n
neighbour``, so each position is projected once and an edge is a gather and an addition. Batch normalisation splits in
the same way. The whole layer is therefore two small tensors, centre terms (N, D) and neighbour terms (M, D), and the
(N, K, D) edges need never be stored:

    index = knn(teacher_feature[centre], teacher_feature, k)
    terms = batch_norm_edges(*project_edges(centre, x, weight), index, ...)      # once per network
    graph = gather_edges(*terms, index).relu()                                   # (N, K, D), where it is needed as such
    distance = edge_distances(*terms_student, *terms_teacher, index)             # (N,), without the (N, K, D) tensors
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, full_precision, upcast

# A float32 distance written as float64 has 29 zero bits at its end: room for the index of a point.
_INDEX_BITS = 29
_FAR = torch.finfo(torch.float32).max
# Elements of an edge block: fits the cache of a CPU core; large enough to fill a GPU.
_BLOCK_CPU, _BLOCK_GPU = 2**16, 2**24


@torch.no_grad()
def knn(
    queries: Tensor,
    points: Tensor,
    k: int,
    batch_q: Tensor | None = None,
    batch_p: Tensor | None = None,
    chunk: int = 128,
) -> Tensor:
    """Indices of the ``k`` points nearest to each query, nearest first and ties by the lower index.

    Squared Euclidean distances, rounded to float32. With batch vectors a query only sees the points of its own sample;
    sorted batch vectors (a concatenated batch) cost no more than the samples one by one.

    Args:
        queries: (N, C).
        points: (M, C), M < 2^29.
        k: neighbours per query, a query's own point included where it is among ``points``. The caller clamps it to the
            number of points, per sample where batch vectors are given.
        batch_q: sample of each query (N,), integers.
        batch_p: sample of each point (M,), integers.
        chunk: queries handled at once; memory is about ``20 * chunk * M`` bytes.

    Returns:
        (N, k) int64, without gradient.

    Raises:
        KDBenchError: a sample holds fewer than ``k`` points, widths differ, or only one batch vector is given.

    Example:
        >>> knn(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0], [0.0]]), k=2)
        tensor([[2, 1],
                [0, 1]])
    """
    if queries.shape[1] != points.shape[1]:
        raise KDBenchError(f"knn: queries are {queries.shape[1]} wide and points {points.shape[1]}, expected one width")
    if (batch_q is None) != (batch_p is None):
        raise KDBenchError("knn: one batch vector was given, expected both batch_q and batch_p or neither")
    total = len(queries)
    if total == 0:
        return torch.empty((0, k), dtype=torch.long, device=queries.device)

    query_order = point_order = None
    if batch_q is not None and batch_p is not None:
        query_order, point_order = batch_q.argsort(stable=True), batch_p.argsort(stable=True)
        batch_q, batch_p = batch_q[query_order], batch_p[point_order]
        queries, points = queries[query_order], points[point_order]
        low = torch.searchsorted(batch_p, batch_q)
        high = torch.searchsorted(batch_p, batch_q, right=True)
    else:
        low = torch.zeros(total, dtype=torch.long, device=queries.device)
        high = torch.full_like(low, len(points))
    fewest = int((high - low).min())
    if k > fewest:
        raise KDBenchError(f"knn: k={k}, but a sample holds {fewest} points; clamp k to the smallest sample")

    with full_precision(queries):
        queries, points = upcast(queries), upcast(points)
        # Distances as one product. The common offset is taken away first: they stay accurate far from the origin.
        offset = points.mean(dim=0)
        queries, points = queries - offset, points - offset
        left = torch.cat([-2 * queries, queries.square().sum(1, keepdim=True), torch.ones_like(queries[:, :1])], dim=1)
        right = torch.cat([points, torch.ones_like(points[:, :1]), points.square().sum(1, keepdim=True)], dim=1).T
        right = right.contiguous()
        position = torch.arange(len(points), device=points.device)
        begins = low[::chunk].tolist()
        ends = high[torch.arange(0, total, chunk, device=high.device).add(chunk - 1).clamp(max=total - 1)].tolist()
        found = []
        for start, begin, end in zip(range(0, total, chunk), begins, ends, strict=True):
            rows = slice(start, start + chunk)
            distance = (left[rows] @ right[:, begin:end]).clamp_(0, _FAR)
            columns = position[begin:end]
            if fewest < end - begin:
                distance.masked_fill_((columns < low[rows, None]) | (columns >= high[rows, None]), _FAR)
            found.append(_nearest(distance, columns, k))
    index = torch.cat(found)
    if query_order is None or point_order is None:
        return index
    restored = torch.empty_like(index)
    restored[query_order] = point_order[index]
    return restored


def _nearest(distance: Tensor, columns: Tensor, k: int) -> Tensor:
    """The ``columns`` (M,) of the ``k`` smallest non-negative distances (N, M) of each row, in order."""
    # Bits of non-negative floats sort like integers, so (distance, index) becomes one unique integer key.
    key = distance.float().double().view(torch.int64).bitwise_or_(columns)
    if key.device.type == "cpu":
        # NumPy's vectorised selection takes a fraction of the time of torch.topk on a CPU.
        keys = key.numpy()
        if k < keys.shape[1]:
            keys.partition(k - 1, axis=1)
        keys = keys[:, :k]
        keys.sort(axis=1)
        smallest = torch.from_numpy(keys)
    else:
        smallest = key.topk(k, dim=1, largest=False, sorted=True).values
    return smallest & ((1 << _INDEX_BITS) - 1)


def project_edges(centre_index: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two terms of the linear edge map ``weight @ [centre; neighbour] + bias``.

    Args:
        centre_index: positions of the graphs' centres in ``x`` (N,).
        x: features (M, C).
        weight: (D, 2C), the columns of the centre first. (Released PointDistiller code concatenates
            [neighbour, centre]: for its weights pass ``weight.roll(C, dims=1)``.)
        bias: (D,).

    Returns:
        Centre terms (N, D), the bias included, and neighbour terms (M, D); the edge (i, j) is their sum.

    Example:
        >>> x, weight = torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0, 1.0]])
        >>> project_edges(torch.tensor([1]), x, weight)
        (tensor([[20.]]), tensor([[1.],
                [2.]]))
    """
    width = x.shape[1]
    if weight.shape[1] != 2 * width:
        raise KDBenchError(
            f"project_edges: weight has shape {tuple(weight.shape)}, expected (D, {2 * width}) for width {width}"
        )
    centre = F.linear(x.index_select(0, centre_index), weight[:, :width], bias)
    return centre, F.linear(x, weight[:, width:])


def gather_edges(centre: Tensor, neighbour: Tensor, neighbour_index: Tensor) -> Tensor:
    """Edges (N, K, D) from centre terms (N, D), neighbour terms (M, D) and neighbour indices (N, K)."""
    rows = neighbour.index_select(0, neighbour_index.reshape(-1))
    return rows.view(*neighbour_index.shape, neighbour.shape[1]).add_(centre[:, None])


def batch_norm_edges(
    centre: Tensor,
    neighbour: Tensor,
    neighbour_index: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Batch normalisation of the edges, applied to their two terms.

    ``gather_edges`` of the result equals ``F.batch_norm`` of ``gather_edges`` of the input over all N * K edges, the
    update of the running statistics included.

    Args:
        centre: (N, D).
        neighbour: (M, D).
        neighbour_index: (N, K).
        running_mean: (D,), updated in place when training.
        running_var: (D,), likewise.
        weight: (D,).
        bias: (D,).
        training: use the statistics of these edges instead of the running ones.
        momentum: weight of these edges in the running statistics.
        eps: added to the variance.

    Returns:
        Normalised centre terms (N, D) and neighbour terms (M, D), in their input's dtype.

    Example:
        >>> norm = torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(1)
        >>> terms = torch.zeros(1, 1), torch.tensor([[1.0], [3.0]])
        >>> index = torch.tensor([[0, 1]])
        >>> gather_edges(*batch_norm_edges(*terms, index, *norm, training=True), index).squeeze()
        tensor([-1.0000,  1.0000])
    """
    dtype = centre.dtype
    centre, neighbour = upcast(centre), upcast(neighbour)
    if not training:
        scale = weight * torch.rsqrt(running_var + eps)
        return (centre * scale + (bias - running_mean * scale)).to(dtype), (neighbour * scale).to(dtype)

    k, edges = neighbour_index.shape[1], max(neighbour_index.numel(), 1)
    uses = torch.bincount(neighbour_index.reshape(-1), minlength=len(neighbour)).to(neighbour.dtype)[:, None]
    centre_mean, neighbour_mean = centre.sum(0) * k / edges, (uses * neighbour).sum(0) / edges
    # Both terms are centred before they are squared, so that no large mean eats the variance's digits.
    centre, neighbour = centre - centre_mean, neighbour - neighbour_mean
    cross = (centre * _NeighbourSum.apply(neighbour, neighbour_index)).sum(0)
    square = k * centre.square().sum(0) + (uses * neighbour.square()).sum(0) + 2 * cross
    var = (square / edges).clamp_min(0)
    if neighbour_index.numel():
        with torch.no_grad():
            running_mean.lerp_((centre_mean + neighbour_mean).to(running_mean.dtype), momentum)
            running_var.lerp_((var * edges / max(edges - 1, 1)).to(running_var.dtype), momentum)
    scale = weight * torch.rsqrt(var + eps)
    return (centre * scale + bias).to(dtype), (neighbour * scale).to(dtype)


class _NeighbourSum(torch.autograd.Function):
    """``sum_k neighbour[index_ik]`` per graph (N, D), whose backward pass adds rows where torch's own sorts them."""

    @staticmethod
    def forward(ctx: Any, neighbour: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.positions = len(neighbour)
        return F.embedding_bag(index, neighbour, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        out = grad.new_zeros(ctx.positions, grad.shape[1])
        for rows in _blocks(index, grad):
            edges = grad[rows, None].expand(-1, index.shape[1], -1)
            out.index_add_(0, index[rows].reshape(-1), edges.flatten(0, 1))
        return out, None


def edge_distances(
    centre_s: Tensor, neighbour_s: Tensor, centre_t: Tensor, neighbour_t: Tensor, neighbour_index: Tensor
) -> Tensor:
    """Mean squared difference of two graphs' ReLU edges, per graph, without storing the edges.

    ``d_i = mean_{k, d} (relu(s_ikd) - relu(t_ikd))^2`` with the edges s, t of ``gather_edges``. The edges are made
    block by block and again in the backward pass: memory is O(N + M) instead of O(N K). Differentiable once, in all
    four terms.

    Args:
        centre_s: student centre terms (N, D).
        neighbour_s: student neighbour terms (M, D).
        centre_t: teacher centre terms (N, D).
        neighbour_t: teacher neighbour terms (M, D).
        neighbour_index: (N, K).

    Returns:
        (N,), float32 for low-precision input.

    Example:
        >>> centre, neighbour, index = torch.ones(1, 1), torch.zeros(2, 1), torch.tensor([[0, 1]])
        >>> edge_distances(centre, neighbour, 3 * centre, neighbour, index)
        tensor([4.])
    """
    check_same_shape(centre_s, centre_t, "edge_distances, centre terms")
    check_same_shape(neighbour_s, neighbour_t, "edge_distances, neighbour terms")
    terms = [upcast(x) for x in (centre_s, neighbour_s, centre_t, neighbour_t)]
    total: Tensor = _SquaredEdgeDistance.apply(*terms, neighbour_index)
    return total / max(neighbour_index.shape[1] * centre_s.shape[1], 1)


class _SquaredEdgeDistance(torch.autograd.Function):
    """``sum_{k, d} (relu(s_ikd) - relu(t_ikd))^2`` per graph; edges are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        centre_s, neighbour_s, centre_t, neighbour_t, index = inputs
        ctx.save_for_backward(*inputs)
        out = centre_s.new_empty(len(index))
        for rows in _blocks(index, centre_s):
            student = gather_edges(centre_s[rows], neighbour_s, index[rows]).relu_()
            teacher = gather_edges(centre_t[rows], neighbour_t, index[rows]).relu_()
            out[rows] = student.sub_(teacher).square_().sum(dim=(1, 2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centre_s, neighbour_s, centre_t, neighbour_t, index = ctx.saved_tensors
        grad_centre_s, grad_centre_t = torch.empty_like(centre_s), torch.empty_like(centre_t)
        grad_neighbour_s, grad_neighbour_t = torch.zeros_like(neighbour_s), torch.zeros_like(neighbour_t)
        for rows in _blocks(index, centre_s):
            student = gather_edges(centre_s[rows], neighbour_s, index[rows]).relu_()
            teacher = gather_edges(centre_t[rows], neighbour_t, index[rows]).relu_()
            slope = (student - teacher).mul_(2 * grad[rows, None, None])
            # The sign of a ReLU's output is its derivative.
            student.sign_().mul_(slope)
            teacher.sign_().mul_(slope.neg_())
            grad_centre_s[rows], grad_centre_t[rows] = student.sum(dim=1), teacher.sum(dim=1)
            flat = index[rows].reshape(-1)
            grad_neighbour_s.index_add_(0, flat, student.flatten(0, 1))
            grad_neighbour_t.index_add_(0, flat, teacher.flatten(0, 1))
        return grad_centre_s, grad_neighbour_s, grad_centre_t, grad_neighbour_t, None


def _blocks(index: Tensor, centre: Tensor) -> list[slice]:
    """Slices over the graphs whose edges make up one block."""
    budget = _BLOCK_CPU if index.device.type == "cpu" else _BLOCK_GPU
    size = max(1, budget // max(index.shape[1] * centre.shape[1], 1))
    return [slice(start, start + size) for start in range(0, len(index), size)]
