"""Affine motion of images, differentiable in the numbers that say how they move."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision


def grid_positions(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of the pixels of an image in coordinates in which its edges are at -1 and 1, row after row.

    Args:
        height: rows, at least 1.
        width: columns, at least 1.
        like: a tensor (any shape) of the device and dtype of the result.

    Returns:
        (N, 2) across, down, with N = height * width.

    Example:
        >>> grid_positions(1, 2, torch.zeros(()))
        tensor([[-0.5000,  0.0000],
                [ 0.5000,  0.0000]])
    """
    identity = torch.eye(2, 3, device=like.device, dtype=like.dtype)[None]
    with full_precision(like):
        return F.affine_grid(identity, [1, 1, height, width], align_corners=False).view(-1, 2)


def affine_positions(positions: Tensor, deviation: Tensor) -> Tensor:
    """Where the pixels of affinely moved images come from, ``(I + A) p + t``.

    Args:
        positions: p of the moved images (N, 2).
        deviation: the rows of ``(A | t)`` of each sample (B, 6): scale across, shear, shift across, then shear, scale
            down, shift down. All zero leave it as it is; a shift is in halves of the image's side.

    Returns:
        (B, N, 2).

    Raises:
        KDBenchError: there are not six numbers a sample.

    Example:
        >>> affine_positions(torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 0.0, 0.25, 1.0, 0.0, 0.0]]))
        tensor([[[0.7500, 0.5000]]])
    """
    if deviation.dim() != 2 or deviation.shape[1] != 6:
        raise KDBenchError(f"affine_positions: found deviations of shape {tuple(deviation.shape)}, expected (B, 6)")
    rows = deviation.view(-1, 2, 3)
    with full_precision(positions):
        return positions + positions @ rows[..., :2].transpose(1, 2) + rows[:, None, :, 2]


def sample_images(images: Tensor, positions: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Reads images at positions; what lies outside of an image is as the nearest pixel of its edge.

    A position that is not finite gives a value that is none either.

    Args:
        images: (B, C, H, W).
        positions: (B, N, 2) across, down, from -1 to 1, with N = h * w; no gradient comes to them in mode ``nearest``.
        size: h and w of the result.
        mode: ``bilinear`` or ``nearest``.

    Returns:
        (B, C, h, w), in the dtype of the images.

    Example:
        >>> image = torch.tensor([[[[1.0, 3.0]]]])
        >>> sample_images(image, torch.tensor([[[0.0, 0.0]]]), (1, 1))
        tensor([[[[2.]]]])
    """
    grid = positions.view(len(positions), *size, 2).to(images.dtype)
    # On the CPU it would look for the pixel at NaN outside of its memory.
    found = F.grid_sample(images, grid.nan_to_num(), mode=mode, padding_mode="border", align_corners=False)
    return torch.where(grid.isfinite().all(3)[:, None], found, torch.nan)
