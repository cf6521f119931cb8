"""Sets of points: which of them stand for all, and which of them are near. Batches are dense, (B, N, 3).

Qi, Yi, Su & Guibas, "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space", NeurIPS 2017,
sections 3.2 and 3.4. Nothing here has a gradient but :func:`take`; distances are those of differences, not of products,
so that points far from the origin are told apart as well as those near it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_BLOCK = 1 << 24  # bounds the distances in memory, not the result


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gathers rows of each sample.

    Args:
        values: (B, N, C).
        index: Rows of each sample, (B, …).

    Returns:
        (B, …, C).
    """
    batch, count, width = values.shape
    start = torch.arange(0, batch * count, count, device=index.device).view(-1, *(1 for _ in index.shape[1:]))
    return values.reshape(-1, width).index_select(0, (index + start).flatten()).view(*index.shape, width)


def evenly(counts: Tensor, number: int) -> Tensor:
    """Spreads picks over lists: ``floor(i count / number)``, which repeats what is in a list of fewer.

    Args:
        counts: Length of each list, (R,).
        number: Picks of each.

    Returns:
        (R, number) places; 0 in an empty list.
    """
    return torch.arange(number, device=counts.device) * counts[:, None] // number


def dense(points: Tensor, batch: Tensor, size: int, count: int) -> Tensor:
    """Brings every sample of a ragged batch to one number of points, spread evenly over its own.

    Which points these are depends on how many there are, not on where they lie.

    Args:
        points: (P, C), samples one after another.
        batch: The sample of each, (P,).
        size: Samples of the batch, B.
        count: Points of a sample.

    Returns:
        (B, count, C); zeros for a sample without any.
    """
    counts = torch.bincount(batch, minlength=size)
    starts = counts.cumsum(0) - counts
    if len(points) == 0:
        return points.new_zeros(size, count, points.shape[1])
    rows = (starts[:, None] + evenly(counts, count)).clamp(max=len(points) - 1)
    return points[rows] * (counts > 0)[:, None, None]


@torch.no_grad()
def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """Chooses points one by one, each the farthest from those before; the first point is the first choice.

    All points of all samples are looked at at once; the choices themselves follow one from another.

    Args:
        xyz: (B, N, 3), N > 0.
        count: How many.

    Returns:
        Their indices, (B, count) int64; of equally far points the first.
    """
    columns = xyz.transpose(1, 2).contiguous()
    apart = xyz.new_full((xyz.shape[0], xyz.shape[1]), torch.inf)
    chosen = torch.zeros(xyz.shape[0], count, dtype=torch.long, device=xyz.device)
    for turn in range(1, count):
        last = chosen[:, turn - 1, None, None].expand(-1, 3, 1)
        torch.minimum(apart, (columns - columns.gather(2, last)).square_().sum(1), out=apart)
        chosen[:, turn] = apart.argmax(1)
    return chosen


@torch.no_grad()
def ball_query(xyz: Tensor, centres: Tensor, radii: Sequence[float], samples: Sequence[int]) -> list[Tensor]:
    """Finds points nearer to each centre than a radius: the first ones by index.

    A ball with fewer points repeats its first one, one without any has point 0.

    Args:
        xyz: (B, N, 3).
        centres: (B, M, 3).
        radii: In the unit of the coordinates.
        samples: Points of a ball, by radius.

    Returns:
        Indices (B, M, K), by radius.
    """
    found: list[list[Tensor]] = [[] for _ in radii]
    for apart in _distances(centres, xyz):
        for parts, radius, number in zip(found, radii, samples, strict=True):
            parts.append(_first(apart < radius, number))
    return [torch.cat(parts, 1) for parts in found]


def _distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """Yields distances (B, m, N) of (B, M, 3) to (B, N, 3), a block of rows at a time."""
    rows = max(1, _BLOCK // max(1, second.shape[0] * second.shape[1]))
    for block in first.split(rows, 1):
        yield torch.cdist(block, second, compute_mode="donot_use_mm_for_euclid_dist")


def _first(mask: Tensor, number: int) -> Tensor:
    """Returns the columns of the first true values in each row of (B, M, N), (B, M, number)."""
    rows = mask.flatten(0, 1)
    row, column = rows.nonzero(as_tuple=True)
    counts = rows.sum(1)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    chosen = torch.zeros(len(rows), dtype=torch.long, device=row.device)
    chosen[row[rank == 0]] = column[rank == 0]
    chosen = chosen[:, None].repeat(1, number)
    kept = rank < number
    chosen[row[kept], rank[kept]] = column[kept]
    return chosen.view(*mask.shape[:2], number)


@torch.no_grad()
def nearest(targets: Tensor, sources: Tensor, number: int = 3) -> tuple[Tensor, Tensor]:
    """Finds the sources nearest to each target.

    Args:
        targets: (B, N, 3).
        sources: (B, M, 3).
        number: How many; all where there are fewer.

    Returns:
        Distances and indices, (B, N, K), nearest first.
    """
    number = min(number, sources.shape[1])
    found = [apart.topk(number, largest=False) for apart in _distances(targets, sources)]
    return torch.cat([part.values for part in found], 1), torch.cat([part.indices for part in found], 1)
