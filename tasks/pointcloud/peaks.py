"""Gaussians around the centres of objects on a bird's-eye grid, as CenterPoint (Yin et al., CVPR 2021) draws them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OVERLAP = 0.1  # that a box of this size, shifted by the radius, still has with the object
SMALLEST = 2  # cells


def radius(length: Tensor, width: Tensor, overlap: float = OVERLAP) -> Tensor:
    """Returns how far from the centre of objects their Gaussian goes, in whole cells.

    The smallest of the three radii of CornerNet (Law & Deng, ECCV 2018), by the formulas that CenterPoint's code has.

    Args:
        length: In cells, (N,).
        width: Likewise.
        overlap: Between 0 and 1.

    Returns:
        (N,), at least 2.
    """
    total, area = length + width, length * width
    half = total / 2
    first = half + (total.square() - 4 * area * (1 - overlap) / (1 + overlap)).sqrt() / 2
    second = total + (4 * total.square() - 16 * (1 - overlap) * area).sqrt() / 2
    third = -overlap * total + (4 * (overlap * total).square() + 16 * overlap * (1 - overlap) * area).sqrt() / 2
    return torch.minimum(torch.minimum(first, second), third).floor().clamp(min=SMALLEST)


def gaussian_peaks(
    boxes: Tensor, sample: Tensor, size: int, low: Sequence[float], cell: Sequence[float], grid: tuple[int, ...]
) -> Tensor:
    """Draws the objects of a batch: one in the cell of a centre, falling to nothing behind its radius.

    Args:
        boxes: (N, 7), metres.
        sample: The sample of each, (N,).
        size: Samples of the batch, B.
        low: Where the grid begins along y and x, metres.
        cell: Size of a cell along y and x, metres.
        grid: Cells along y and x.

    Returns:
        (B, *grid), from 0 to 1; the greater where two objects meet.
    """
    boxes = boxes.float()
    reach = radius(boxes[:, 3] / cell[1], boxes[:, 4] / cell[0])
    sigma = (2 * reach + 1) / 6
    sides = []
    for axis, column in enumerate((1, 0)):
        centre = ((boxes[:, column] - low[axis]) / cell[axis]).floor()
        apart = torch.arange(grid[axis], device=boxes.device) - centre[:, None]
        side = (-apart.square() / (2 * sigma.square())[:, None]).exp()
        sides.append(torch.where(apart.abs() <= reach[:, None], side, 0.0))
    drawn = sides[0][:, :, None] * sides[1][:, None, :]
    found = boxes.new_zeros(size, *grid)
    return found.scatter_reduce(0, sample[:, None, None].expand_as(drawn), drawn, "amax")
