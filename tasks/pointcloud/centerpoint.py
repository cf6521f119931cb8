"""CenterPoint (Yin, Zhou & Krähenbühl, CVPR 2021), its first stage: objects are peaks of heat maps, without anchors.

A heat map for each class says where centres are; a centre's cell says the rest of its box. The head is that of the
authors' configurations for Waymo's three classes (tianweiy/CenterPoint), one for all classes and without velocities, on
the pillars of PointPillars or the voxels of SECOND.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.pointcloud.anchors import SIZE_LIMIT
from tasks.pointcloud.detector import PointPillars
from tasks.pointcloud.second import SECOND

HEAD_CHANNELS = 64
HEAT_BIAS = -2.19  # a score of 0.1
PLACED, TURNED = 6, 2  # values of a code: offset x and y, z, three sizes; sine and cosine


class Cells(NamedTuple):
    """The cells of a head.

    Attributes:
        grid: Their number along y and x.
        low: Where they begin along x and y, metres.
        size: Of one along x and y, metres.
    """

    grid: tuple[int, int]
    low: tuple[float, float]
    size: tuple[float, float]

    @classmethod
    def of(cls, point_range: Sequence[float], grid: tuple[int, int]) -> Cells:
        """Divides a range of x, y, z minimum, then x, y, z maximum, metres."""
        low, high = point_range[:2], point_range[3:5]
        x, y = ((b - a) / count for a, b, count in zip(low, high, grid[::-1], strict=True))
        return cls(grid, (low[0], low[1]), (x, y))

    def place(self, boxes: Tensor) -> Tensor:
        """Returns the centres of boxes (..., 7) in cells along x and y, (..., 2); whole numbers are edges of cells."""
        return (boxes[..., :2] - boxes.new_tensor(self.low)) / boxes.new_tensor(self.size)

    def holds(self, cell: Tensor) -> Tensor:
        """Says which cells along x and y (..., 2) there are, (...)."""
        return ((cell >= 0) & (cell < cell.new_tensor(self.grid[::-1]))).all(-1)


def encode(boxes: Tensor, cells: Cells) -> Tensor:
    """Codes boxes (..., 7) in the cells that hold their centres, the inverse of :func:`decode`.

    Returns:
        (..., 8): the centre's offset from the low corner of its cell along x and y, in cells; its z in metres; the
        logarithms of l, w and h in metres; sine and cosine of the yaw.
    """
    place, yaw = cells.place(boxes), boxes[..., 6:]
    return torch.cat([place - place.floor(), boxes[..., 2:3], boxes[..., 3:6].log(), yaw.sin(), yaw.cos()], -1)


def decode(codes: Tensor, index: Tensor, cells: Cells) -> Tensor:
    """Returns the boxes (..., 7) that codes (..., 8) say in cells.

    Args:
        codes: As of :func:`encode`; sizes are bounded.
        index: The cell of each, y times the width of the grid plus x, (...).
        cells: Of the head.
    """
    width = cells.grid[1]
    x = (index % width + codes[..., 0]) * cells.size[0] + cells.low[0]
    y = (index // width + codes[..., 1]) * cells.size[1] + cells.low[1]
    size = codes[..., 3:6].clamp(-SIZE_LIMIT, SIZE_LIMIT).exp()
    yaw = torch.atan2(codes[..., 6], codes[..., 7])
    return torch.cat([torch.stack([x, y, codes[..., 2]], -1), size, yaw[..., None]], -1)


def maxima(cls: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the scores of cells that no neighbour of the eight surpasses in a class, and 0 elsewhere.

    Args:
        cls: Logits of cells over y and x, (B, A, C).
        grid: Cells (y, x).
    """
    maps = cls.float().transpose(1, 2).unflatten(2, grid)
    best = F.max_pool2d(maps, 3, stride=1, padding=1)
    return (maps.sigmoid() * (maps == best)).flatten(2).transpose(1, 2)


class CenterHead(nn.Module):
    """A shared 3x3 convolution, then two for each kind of output: heat maps, offset, height, size, yaw.

    Args:
        in_channels: Channels of the map.
        channels: Of all convolutions but the last.
        classes: How many there are.
    """

    def __init__(self, in_channels: int, channels: int, classes: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(*_block(in_channels, channels))
        kinds = {"heat": classes, "offset": 2, "height": 1, "size": 3, "yaw": TURNED}
        self.kinds = nn.ModuleDict(
            {
                name: nn.Sequential(*_block(channels, channels), nn.Conv2d(channels, values, 3, padding=1))
                for name, values in kinds.items()
            }
        )
        for name, branch in self.kinds.items():
            last = branch[-1]  # type: ignore[index]
            if name == "heat":
                nn.init.constant_(last.bias, HEAT_BIAS)
            else:
                nn.init.kaiming_normal_(last.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits (B, A, C), places and sizes (B, A, 6), sine and cosine (B, A, 2) for A cells over y and x."""
        shared = self.shared(features)
        heat, *placed, yaw = (branch(shared).flatten(2).transpose(1, 2) for branch in self.kinds.values())
        return heat, torch.cat(placed, -1), yaw


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class _Centred:
    """Gives a detector a ``CenterHead`` of 64 channels times the width."""

    classes: tuple[str, ...]

    def make_head(self, channels: int, width: float) -> nn.Module:
        """Creates the head for a map of so many channels."""
        return CenterHead(channels, round(width * HEAD_CHANNELS), len(self.classes))


class CenterPillars(_Centred, PointPillars):
    """CenterPoint on pillars: ``PointPillars`` with a ``CenterHead`` of 64 channels times the width.

    Its outputs are over cells: class logits (B, A, C), ``box`` the first six values of :func:`encode` (B, A, 6) and
    ``direction`` its last two (B, A, 2), with ``A = H * W``.
    """


class CenterVoxels(_Centred, SECOND):
    """CenterPoint on voxels: ``SECOND`` with a ``CenterHead`` of 64 channels times the width; see ``CenterPillars``."""


class Peaks(nn.Module):
    """Decodes what a detector with a ``CenterHead`` says of one scan.

    Args:
        cells: Of the head.
    """

    def __init__(self, cells: Cells) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, cls: Tensor, box: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the box of each cell (A, 7) in metres and radians, and its scores (A, classes), 0 but at peaks."""
        codes = torch.cat([box, direction], -1)[0].float()
        index = torch.arange(codes.shape[0], device=codes.device)
        return decode(codes, index, self.cells), maxima(cls, self.cells.grid)[0]
