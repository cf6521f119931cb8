"""Other sizes for grids with one to three spatial axes, e.g. to bring two of different sizes to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError

_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def average_pool(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Averages a grid (B, C, *space) over ``size`` bins, one number per axis; the grid itself where it has that size.

    Example:
        >>> import torch
        >>> average_pool(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [2])
        tensor([[[2., 6.]]])
    """
    return feature if tuple(feature.shape[2:]) == tuple(size) else _POOL[len(size)](feature, tuple(size))


def resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Brings a grid (B, C, *space) to ``size`` by linear interpolation; the grid itself where it has that size.

    Example:
        >>> import torch
        >>> resize(torch.tensor([[[0.0, 4.0]]]), [4])
        tensor([[[0., 1., 3., 4.]]])
    """
    if tuple(feature.shape[2:]) == tuple(size):
        return feature
    return F.interpolate(feature, tuple(size), mode=_LINEAR[len(size)])


def global_average(feature: Tensor) -> Tensor:
    """Averages a grid (B, C, *space) over its cells to (B, C); a vector (B, C) stays as it is.

    Example:
        >>> import torch
        >>> global_average(torch.tensor([[[1.0, 3.0], [0.0, 4.0]]]))
        tensor([[2., 2.]])
    """
    return feature if feature.ndim == 2 else feature.flatten(2).mean(2)


def check_grids(first: Tensor, second: Tensor, what: str) -> None:
    """Raises ``KDBenchError`` unless both are grids (B, C, *space) of one batch with 1 to 3 spatial axes each."""
    if first.ndim != second.ndim or first.ndim - 2 not in _POOL or first.shape[0] != second.shape[0]:
        raise KDBenchError(
            f"{what}: found shapes {tuple(first.shape)} and {tuple(second.shape)}, "
            "expected two grids (B, C, *space) of one batch with 1 to 3 spatial axes; check the pair's taps"
        )


def pool_to_smaller(first: Tensor, second: Tensor, what: str = "pool_to_smaller") -> tuple[Tensor, Tensor]:
    """Average-pools two grids to the smaller size along each axis; grids of one size are left as they are.

    Args:
        first: (B, C_1, *space_1), one to three spatial axes.
        second: (B, C_2, *space_2).
        what: Who asks, for the error line.

    Returns:
        (B, C_1, *space) and (B, C_2, *space).

    Raises:
        KDBenchError: Batch sizes or numbers of axes differ.

    Example:
        >>> import torch
        >>> first, second = pool_to_smaller(torch.zeros(1, 2, 4, 2), torch.zeros(1, 3, 2, 4))
        >>> first.shape, second.shape
        (torch.Size([1, 2, 2, 2]), torch.Size([1, 3, 2, 2]))
    """
    check_grids(first, second, what)
    size = tuple(map(min, first.shape[2:], second.shape[2:]))
    return average_pool(first, size), average_pool(second, size)
