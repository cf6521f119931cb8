"""Changes of pixels that are free but for their size."""

from __future__ import annotations

import torch
from torch import Tensor


def within_norm(change: Tensor, radius: float) -> Tensor:
    """Shrinks changes whose root mean square exceeds a radius to it: the projection onto a ball.

    Args:
        change: (M, C, H, W).
        radius: > 0, in the unit of the pixels.

    Returns:
        (M, C, H, W).

    Example:
        >>> within_norm(torch.tensor([[[[3.0, 3.0]]], [[[0.5, 0.0]]]]), 1.0)
        tensor([[[[1.0000, 1.0000]]],
        <BLANKLINE>
        <BLANKLINE>
                [[[0.5000, 0.0000]]]])
    """
    size = root_mean_square(change)[:, None, None, None]
    return change * torch.where(size > radius, radius / size.clamp(min=torch.finfo(size.dtype).tiny), 1.0)


def root_mean_square(change: Tensor) -> Tensor:
    """Root mean square of each change (M, C, H, W), as (M,); its gradient at zero is zero.

    Example:
        >>> root_mean_square(torch.tensor([[[[3.0, 4.0]]]]))
        tensor([3.5355])
    """
    squared = change.flatten(1).square().mean(1)
    return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
