"""Weights as indices of points within buckets, with a range for each bucket.

Polino, Pascanu & Alistarh, Model compression via distillation and quantization (ICLR 2018), as in the authors' code:
each bucket of consecutive weights is scaled to [0, 1], ``sc(v) = (v - low) / (high - low)``, goes to the nearest of
some points there, or to one of its two neighbours at random, and back. What leaves here is a function of ``(low, high,
point)`` by operations that are each rounded once, so what is quantised twice, or written and read, is the same to the
bit.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import KDBenchError

#: Range of a bucket: from its smallest to its largest value, or as far to both sides of zero as its largest magnitude.
Scaling: TypeAlias = Literal["linear", "absmax"]

#: A range that is narrower is taken for a constant, whose range has the width 1.
NARROW = 1e-10
#: Most bits of an index.
MOST_BITS = 8


def bucket_ranges(values: Tensor, bucket: int | None = None, scaling: Scaling = "linear") -> tuple[Tensor, Tensor]:
    """Smallest and largest value that each bucket of consecutive values can take.

    A bucket of one value (a width below 1e-10) begins there and has the width 1, as in the authors' code; so has one of
    zeros under ``"absmax"``.

    Args:
        values: any shape; taken in the order of its elements.
        bucket: values of a bucket, the last one may have fewer; None for one bucket of all.
        scaling: ``"linear"``, from the smallest to the largest value; ``"absmax"``, as far to both sides of zero.

    Returns:
        low (B,), high (B,).

    Example:
        >>> bucket_ranges(torch.tensor([1.0, -3.0, 2.0, 0.5]), 2)
        (tensor([-3.0000,  0.5000]), tensor([1., 2.]))
    """
    rows = _rows(values, bucket)
    if scaling == "absmax":
        largest = rows.abs().amax(1)
        return torch.where(largest < NARROW, 0.0, -largest), torch.where(largest < NARROW, 1.0, largest)
    low, high = rows.amin(1), rows.amax(1)
    # A large constant and 1 would be the constant again.
    return low, torch.where(high - low < NARROW, low + (low.abs() * 2**-20).clamp(min=1), high)


def _rows(values: Tensor, bucket: int | None) -> Tensor:
    """Returns buckets as rows (B, bucket); the last one is filled up with the last value."""
    flat = values.reshape(-1)
    if not len(flat):
        raise KDBenchError("there is no weight to quantise: the tensor is empty")
    width = len(flat) if bucket is None else bucket
    missing = -len(flat) % width
    return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, width) if missing else flat.view(-1, width)


def _each(ranges: tuple[Tensor, Tensor], count: int, bucket: int | None) -> tuple[Tensor, Tensor]:
    """Returns the range of each of ``count`` values."""
    low, high = (end.repeat_interleave(count if bucket is None else bucket)[:count] for end in ranges)
    return low, high


def scale_to_unit(values: Tensor, ranges: tuple[Tensor, Tensor], bucket: int | None = None) -> Tensor:
    """Where each value lies in the range of its bucket, from 0 to 1: ``(v - low) / (high - low)``.

    Args:
        values: any shape.
        ranges: of :func:`bucket_ranges`, (B,) each.
        bucket: values of a bucket; None for one bucket of all.

    Returns:
        (N,), in the order of the elements.

    Example:
        >>> values = torch.tensor([1.0, -3.0, 2.0, 0.5])
        >>> scale_to_unit(values, bucket_ranges(values))
        tensor([0.8000, 0.0000, 1.0000, 0.7000])
    """
    flat = values.reshape(-1)
    low, high = _each(ranges, len(flat), bucket)
    return (flat - low) / (high - low)


def uniform_points(levels: int) -> Tensor:
    """Evenly spaced points from 0 to 1, of shape (levels,) and any number of them from 2.

    Example:
        >>> uniform_points(3)
        tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.arange(levels) / (levels - 1)


def quantile_points(unit: Tensor, levels: int) -> Tensor:
    """Points at equally many values: the quantiles 0, 1 / (levels - 1), …, 1, interpolated.

    Args:
        unit: values in [0, 1], (N,).
        levels: how many points, from 2.

    Returns:
        (S,), ascending.

    Example:
        >>> quantile_points(torch.tensor([0.0, 0.1, 0.2, 1.0]), 3)
        tensor([0.0000, 0.1500, 1.0000])
    """
    ordered = unit.reshape(-1).sort().values
    place = uniform_points(levels).to(ordered) * (len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below).cummax(0).values


def nearest_points(unit: Tensor, points: Tensor) -> Tensor:
    """Index of the point that is nearest to each value; of two that are equally near, the lower one.

    Args:
        unit: (N,).
        points: ascending, (S,).

    Returns:
        Integers (N,).

    Example:
        >>> nearest_points(torch.tensor([0.1, 0.6, 0.9]), uniform_points(3))
        tensor([0, 1, 2])
    """
    fixed = points.detach()
    return torch.searchsorted((fixed[1:] + fixed[:-1]) / 2, unit.detach().contiguous())


def random_points(unit: Tensor, points: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Index of one of the two points around each value, at random so that the point's mean is the value.

    A value beyond the ends goes to the nearest end.

    Args:
        unit: (N,).
        points: ascending, (S,).
        generator: of the CPU, from which is drawn whatever the device; None is torch's own.

    Returns:
        Integers (N,).

    Example:
        >>> drawn = random_points(torch.full((1000,), 0.3), uniform_points(2), torch.Generator().manual_seed(0))
        >>> bool((drawn.float().mean() - 0.3).abs() < 0.05)
        True
    """
    fixed, values = points.detach(), unit.detach().contiguous()
    below = torch.searchsorted(fixed, values, right=True).sub(1).clamp(0, len(fixed) - 2)
    low, high = fixed[below], fixed[below + 1]
    share = torch.where(high > low, (values - low) / (high - low), 0.0)
    drawn = torch.rand(len(values), generator=generator, dtype=values.dtype).to(values.device)
    return below + (drawn < share).long()


def from_points(codes: Tensor, points: Tensor, ranges: tuple[Tensor, Tensor], bucket: int | None = None) -> Tensor:
    """Values of indices: ``low + (high - low) * points[code]``, exact at both ends of the range.

    The gradient with respect to a point is the sum of those of its values, each times the width of its bucket.

    Args:
        codes: indices of points, integers (N,).
        points: (S,).
        ranges: of :func:`bucket_ranges`, (B,) each.
        bucket: values of a bucket; None for one bucket of all.

    Returns:
        (N,).

    Example:
        >>> from_points(torch.tensor([0, 1, 2]), uniform_points(3), (torch.tensor([-1.0]), torch.tensor([3.0])))
        tensor([-1.,  1.,  3.])
    """
    low, high = _each(ranges, len(codes), bucket)
    share = points[codes.long()]
    # As one operation (lerp) the result would depend on where in a vector register a value comes to lie.
    return torch.where(share < 0.5, low + share * (high - low), high - (1 - share) * (high - low))


def straight_through(values: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` in value, ``values`` in gradient: the gradient at the quantised weights comes to the others.

    The straight-through estimator of Bengio et al. (arXiv 1308.3432).

    Args:
        values: of any shape.
        quantized: same shape.

    Returns:
        Same shape.

    Example:
        >>> weight = torch.tensor([0.2, 0.9], requires_grad=True)
        >>> (straight_through(weight, torch.tensor([0.0, 1.0])) * torch.tensor([2.0, 3.0])).sum().backward()
        >>> weight.grad
        tensor([2., 3.])
    """
    return quantized.detach() + (values - values.detach())  # the difference is zero, its gradient one


def share_points(norms: Sequence[float], levels: int, most: int = 2**MOST_BITS) -> list[int]:
    """Shares points among tensors: each keeps half of ``levels``, the rest go by the norms of their gradients.

    As in the authors' code. Their sum stays ``len(norms) * levels``, by largest remainders, and what one tensor cannot
    take goes to the others.

    Args:
        norms: of each tensor's gradient, none negative; where all are zero, all are alike.
        levels: points of a tensor on average, from 2.
        most: points of one tensor, at least ``levels``.

    Returns:
        How many points each tensor has.

    Example:
        >>> share_points([3.0, 1.0], 4)
        [5, 3]
    """
    least = max(2, levels // 2) if levels > 2 else levels
    found, left = [least] * len(norms), len(norms) * (levels - least)
    open_to = [i for i in range(len(norms)) if least < most]
    while left and open_to:
        total = sum(norms[i] for i in open_to)
        parts = {i: left * (norms[i] / total if total > 0 else 1 / len(open_to)) for i in open_to}
        given = {i: min(math.floor(part), most - found[i]) for i, part in parts.items()}
        by_remainder = sorted(open_to, key=lambda i: (given[i] - parts[i], i))
        spare = left - sum(given.values())
        for i in by_remainder[: min(spare, len(open_to))]:
            given[i] += int(found[i] + given[i] < most)
        for i, number in given.items():
            found[i] += number
        left -= sum(given.values())
        open_to = [i for i in open_to if found[i] < most]
    return found


# ---- size ---------------------------------------------------------------------------------------------------------


def huffman_lengths(counts: Sequence[int]) -> list[int]:
    """Bits of the Huffman code of each symbol.

    Args:
        counts: how often each symbol occurs.

    Returns:
        A length for each; 0 for what does not occur, and for the only one that does.

    Example:
        >>> huffman_lengths([5, 1, 0, 2])
        [1, 2, 0, 2]
    """
    lengths = [0] * len(counts)
    heap = [(count, i, [i]) for i, count in enumerate(counts) if count]
    heapq.heapify(heap)
    while len(heap) > 1:
        (first, i, left), (second, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (*left, *right):
            lengths[symbol] += 1
        heapq.heappush(heap, (first + second, i, left + right))
    return lengths


def mean_code_length(counts: Sequence[int]) -> float:
    """Bits of a symbol under its Huffman code, on average over all that occur.

    Args:
        counts: how often each symbol occurs.

    Example:
        >>> mean_code_length([5, 1, 0, 2])
        1.375
    """
    total = sum(counts)
    return sum(n * bits for n, bits in zip(counts, huffman_lengths(counts), strict=True)) / max(total, 1)


def quantized_bytes(bits: float, weights: int, buckets: int, apart: int = 0) -> float:
    """Bytes of quantised weights as the paper counts them: ``bits * N / 8``, two floats a bucket, four bytes a float.

    Args:
        bits: of an index, or its mean under a code.
        weights: N that are quantised.
        buckets: of them.
        apart: weights that are left in floating point.

    Example:
        >>> quantized_bytes(4, 1024, 4, apart=10)
        584.0
    """
    return bits * weights / 8 + 8 * buckets + 4 * apart


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Writes indices one after another with ``bits`` bits each, the highest first.

    Args:
        codes: integers below ``2 ** bits``, (N,).
        bits: 1 to 8.

    Returns:
        Bytes (M,) uint8, of which M is N * bits / 8 rounded up.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3, 0, 1]), 2)
        tensor([108,  64], dtype=torch.uint8)
    """
    held = codes.cpu().numpy().astype(np.uint8).reshape(-1, 1)
    return torch.from_numpy(np.packbits(np.unpackbits(held, axis=1)[:, MOST_BITS - bits :]))


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Reads what :func:`pack_bits` has written.

    Args:
        packed: uint8, (M,).
        bits: of an index.
        count: N indices.

    Returns:
        Integers (N,).

    Example:
        >>> unpack_bits(torch.tensor([108, 64], dtype=torch.uint8), 2, 5)
        tensor([1, 2, 3, 0, 1])
    """
    held = np.unpackbits(packed.cpu().numpy(), count=count * bits).reshape(count, bits)
    weights = 1 << np.arange(bits - 1, -1, -1)
    return torch.from_numpy(held.astype(np.int64) @ weights)
