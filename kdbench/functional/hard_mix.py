"""Mixing images two by two with a weight for each place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mix_by_weights(images: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Mixes every image with another one, ``(1 - w) x + w x'``, with w bilinear between a few cells and in 0 to 1.

    Args:
        images: x (B, C, H, W).
        others: x' (B, C, H, W).
        weights: of the cells (B, h, w); their size counts, not their sign, and 1 is the most.

    Returns:
        (B, C, H, W).

    Example:
        >>> import torch
        >>> mix_by_weights(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.tensor([[[-0.25]]]))
        tensor([[[[0.2500, 0.2500]]]])
    """
    share = weights.abs().clamp(max=1)[:, None]
    share = F.interpolate(share, images.shape[2:], mode="bilinear", align_corners=False).to(images.dtype)
    return images + share * (others - images)
