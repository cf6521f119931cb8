"""PointPillars (Lang et al., CVPR 2019) in plain PyTorch: no compiled operators, no padding.

``PointPillars`` reads a batch of point clouds as one concatenated list. All that follows the pillar encoder reads a
dense bird's-eye-view canvas and exports with ``torch.export`` (see ``PointPillars.dense_part``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import KDBenchError

BLOCK_CHANNELS = (64, 128, 256)
BLOCK_DEPTHS = (3, 5, 5)
NECK_CHANNELS = 128
YAWS_PER_CLASS = 2
PRIOR = 0.01


class PillarOutputs(NamedTuple):
    """What the network says about a batch of B samples, and the sparse pillars that it read.

    The A anchors of a sample run over y, x, class and yaw, the last fastest: ``A = H * W * classes * 2`` over the cells
    of the head, the order of ``anchors.Anchors.boxes``. Those of a head without anchors are the cells; see
    ``centerpoint.CenterPillars``.

    Attributes:
        cls: Class logits, (B, A, C).
        box: Box codes, (B, A, 7); see ``anchors.decode``.
        direction: Logits of the two heading bins, (B, A, 2).
        pillars: Features of the M non-empty pillars of the batch, (M, F).
        coords: Their (batch, y, x) cells, (M, 3).
        counts: Their points, (M,).
    """

    cls: Tensor
    box: Tensor
    direction: Tensor
    pillars: Tensor
    coords: Tensor
    counts: Tensor


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class PillarEncoder(nn.Module):
    """Dynamic pillar feature net: a linear layer, BatchNorm and ReLU per point, then the maximum per pillar.

    Each point is described by its own columns (x, y, z, reflectance), its offset from the mean of its pillar and its
    offset from the centre of its pillar's cell.

    This differs from the padded voxels (P, 32, 10) of the paper and of mmdetection3d in what padding brings about: here
    every pillar is kept; all its points count unless ``max_points`` caps them (then the first ones in input order);
    empty slots do not take part in the maximum, where after BatchNorm they stand for ``relu(norm(0))``, nor in the
    statistics of BatchNorm. The columns keep absolute coordinates, as in OpenPCDet; ``legacy`` writes the offset from
    the centre over them, as mmdetection3d's ``legacy=True`` does, with which PointDistiller was run.
    """

    def __init__(
        self,
        channels: int,
        point_range: Sequence[float],
        pillar: Sequence[float],
        grid: tuple[int, int],
        in_channels: int = 4,
        max_points: int | None = None,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.max_points, self.grid, self.legacy = in_channels, max_points, grid, legacy
        size = (pillar[0], pillar[1], point_range[5] - point_range[2])
        self.register_buffer("low", torch.tensor(point_range[:3], dtype=torch.float32), persistent=False)
        self.register_buffer("size", torch.tensor(size, dtype=torch.float32), persistent=False)
        self.register_buffer("cells", torch.tensor([grid[1], grid[0], 1.0]), persistent=False)
        self.linear = nn.Linear(in_channels + 6, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3)

    low: Tensor
    size: Tensor
    cells: Tensor

    def forward(self, points: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the features (M, F), cells (M, 3) as (batch, y, x) and point counts (M,) of the non-empty pillars.

        Pillars are sorted by (batch, y, x). Points outside the range or with a NaN are left out.

        Args:
            points: x, y, z in metres and further columns such as reflectance, (P, in_channels).
            batch: The sample of each point, (P,).
        """
        check_columns(points, self.in_channels)
        cell = ((points[:, :3] - self.low) / self.size).floor()
        inside = ((cell >= 0) & (cell < self.cells)).all(1)
        points, batch, cell = points[inside], batch[inside], cell[inside]

        height, width = self.grid
        x, y = cell[:, :2].long().unbind(1)
        keys, pillar = torch.unique((batch * height + y) * width + x, return_inverse=True)
        if self.max_points is not None:
            first = rank(pillar) < self.max_points
            points, pillar, cell = points[first], pillar[first], cell[first]
        counts = pillar.bincount(minlength=len(keys))

        xyz = points[:, :3]
        mean = xyz.new_zeros(len(keys), 3).index_add(0, pillar, xyz) / counts[:, None]
        centre = self.low + (cell + 0.5) * self.size
        columns = torch.cat([xyz - centre, points[:, 3:]], 1) if self.legacy else points
        described = torch.cat([columns, xyz - mean[pillar], xyz - centre], 1)
        if self.training and len(described) >= 2:  # fewer have no statistics
            features, shift = self.norm(self.linear(described)), None
        else:
            features, shift = self.inferred(described)
        # Shift and ReLU commute with the maximum and are cheaper after it.
        peak = features.new_zeros(len(keys), features.shape[1]).scatter_reduce(
            0, pillar[:, None].expand_as(features), features, "amax", include_self=False
        )
        cells = torch.stack([keys // (height * width), keys // width % height, keys % width], 1)
        return F.relu(peak if shift is None else peak + shift), cells, counts

    def inferred(self, described: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the features (P, F) of described points with running statistics, but for a shift (F,).

        The statistics are a scale, which goes into the map, and that shift, which waits for the maximum.
        """
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return F.linear(described, self.linear.weight * scale[:, None]), norm.bias - norm.running_mean * scale


def check_columns(points: Tensor, columns: int) -> None:
    """Refuses points that have other columns than a network reads."""
    if points.ndim != 2 or points.shape[1] != columns:
        raise KDBenchError(
            f"point cloud of shape {tuple(points.shape)}, expected (points, {columns}); "
            f"set in_channels or select columns"
        )


def prior_bias(bias: Tensor) -> None:
    """Starts class scores at what is rare: the focal loss would be all background otherwise."""
    nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))


def remember(model: nn.Module, momentum: float) -> None:
    """Sets the share of a batch in the running statistics of all BatchNorms of a network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = momentum


def rank(group: Tensor) -> Tensor:
    """Returns each element's rank among the elements of its group, in input order, (P,)."""
    order = group.argsort(stable=True)
    counts = group.bincount()
    start = counts.cumsum(0) - counts
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - start[group[order]]
    return place


class PillarScatter(nn.Module):
    """Writes pillars into an otherwise zero canvas (B, F, H, W) that is channels-last in memory."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, pillars: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        height, width = self.grid
        cells = (coords[:, 0] * height + coords[:, 1]) * width + coords[:, 2]
        canvas = pillars.new_zeros(batch_size * height * width, pillars.shape[1])
        canvas.index_copy_(0, cells, pillars)
        return canvas.view(batch_size, height, width, -1).permute(0, 3, 1, 2)


class Backbone(nn.Sequential):
    """Blocks of 3x3 convolutions, by default three at 1/2, 1/4 and 1/8 of the canvas; returns the maps of all."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        depths: Sequence[int] = BLOCK_DEPTHS,
        strides: Sequence[int] = (2, 2, 2),
    ) -> None:
        blocks = []
        for out_channels, depth, stride in zip(channels, depths, strides, strict=True):
            layers: list[nn.Module] = []
            for layer in range(1 + depth):
                step = stride if layer == 0 else 1
                layers += [
                    nn.Conv2d(in_channels, out_channels, 3, step, padding=1, bias=False),
                    _norm(out_channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = out_channels
            blocks.append(nn.Sequential(*layers))
        super().__init__(*blocks)

    def forward(self, canvas: Tensor) -> list[Tensor]:
        maps = []
        for block in self:
            canvas = block(canvas)
            maps.append(canvas)
        return maps


class Neck(nn.Module):
    """Brings the maps of the backbone to the first one's resolution by transposed convolutions and joins them."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.ups = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(inputs, channels, 2**level, stride=2**level, bias=False),
                _norm(channels),
                nn.ReLU(inplace=True),
            )
            for level, inputs in enumerate(in_channels)
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([up(x) for up, x in zip(self.ups, maps, strict=True)], 1)


class AnchorHead(nn.Module):
    """1x1 convolutions to class logits (B, A, C), box codes (B, A, 7) and heading logits (B, A, 2)."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        anchors = classes * YAWS_PER_CLASS
        self.classes = classes
        self.cls = nn.Conv2d(in_channels, anchors * classes, 1)
        self.box = nn.Conv2d(in_channels, anchors * 7, 1)
        self.direction = nn.Conv2d(in_channels, anchors * 2, 1)
        for conv in (self.cls, self.box, self.direction):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        prior_bias(self.cls.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def rows(values: Tensor, width: int) -> Tensor:
            return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, width)

        return rows(self.cls(features), self.classes), rows(self.box(features), 7), rows(self.direction(features), 2)


class DensePart(nn.Module):
    """All of a detector after its encoder, sharing its modules under the same names.

    Reads the canvas (B, F, H, W) and returns ``cls``, ``box`` and ``direction`` of ``PillarOutputs``.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head

    def forward(self, canvas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(self.neck(self.backbone(canvas)))


class PointPillars(nn.Module):
    """PointPillars; the defaults are the three-class KITTI model with 4.835 M parameters.

    Args:
        width: Factor on all channels: 1/2 and 1/4 are the students called 4x and 16x (by parameters) in PointDistiller.
        point_range: x, y, z minimum, then x, y, z maximum, in metres, LiDAR frame.
        pillar: Size of a pillar along x and y in metres. The grid must be a multiple of 8 cells along both.
        classes: Class names, in the order of the logits.
        in_channels: Columns of a point.
        max_points: Cap on the points of a pillar (32 in the paper); None takes all.
        legacy: Whether offsets from a pillar's centre replace absolute coordinates; see ``PillarEncoder``.
        norm_momentum: Share of a batch in the running statistics. The published 0.01 remembers hundreds of steps; a
            short training needs statistics that keep up with its weights.

    Attributes:
        grid: Cells (y, x) of the canvas.
        head_grid: Cells (y, x) of the head.
        canvas_channels: Channels of the canvas.

    Raises:
        KDBenchError: For a range that pillars do not fill, or a grid that is no multiple of 8 cells.
    """

    def __init__(
        self,
        width: float = 1.0,
        point_range: Sequence[float] = (0, -39.68, -3, 69.12, 39.68, 1),
        pillar: Sequence[float] = (0.16, 0.16),
        classes: Sequence[str] = ("Pedestrian", "Cyclist", "Car"),
        in_channels: int = 4,
        max_points: int | None = None,
        legacy: bool = False,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        channels = [round(width * c) for c in BLOCK_CHANNELS]
        if channels[0] < 1:
            raise KDBenchError(f"width={width} leaves no channel, expected at least {1 / BLOCK_CHANNELS[0]:.3f}")
        self.point_range, self.classes = tuple(point_range), tuple(classes)
        self.grid = grid_shape(point_range, pillar)
        self.head_grid = (self.grid[0] // 2, self.grid[1] // 2)
        self.canvas_channels = channels[0]
        neck_channels = round(width * NECK_CHANNELS)

        self.encoder = PillarEncoder(channels[0], point_range, pillar, self.grid, in_channels, max_points, legacy)
        self.scatter = PillarScatter(self.grid)
        self.backbone = Backbone(channels[0], channels)
        self.neck = Neck(channels, neck_channels)
        self.head = self.make_head(neck_channels * len(channels), width)
        remember(self, norm_momentum)

    def make_head(self, channels: int, width: float) -> nn.Module:
        """Creates the head for a map of so many channels."""
        return AnchorHead(channels, len(self.classes))

    def forward(self, points: Tensor, batch: Tensor, batch_size: int) -> PillarOutputs:
        """Runs the network on the points of a whole batch.

        Args:
            points: x, y, z in metres and further columns, (P, in_channels); may be empty.
            batch: The sample of each point, (P,), in [0, batch_size); a sample may have none.
            batch_size: Samples of the batch.
        """
        pillars, coords, counts = self.encoder(points, batch)
        canvas = self.scatter(pillars, coords, batch_size)
        cls, box, direction = self.head(self.neck(self.backbone(canvas)))
        return PillarOutputs(cls, box, direction, pillars, coords, counts)

    def dense_part(self) -> DensePart:
        """Returns all after the pillar encoder as a module that reads a canvas (B, canvas_channels, y, x)."""
        part = DensePart(self.backbone, self.neck, self.head)
        part.training = self.training
        return part


def check_space(point_range: Sequence[float], pillar: Sequence[float]) -> None:
    """Refuses a range that is none, and pillars without a size."""
    expected = "expected x, y, z minimum, then the greater x, y, z maximum, finite and in metres"
    ordered = len(point_range) == 6 and all(a < b for a, b in zip(point_range[:3], point_range[3:], strict=True))
    if not ordered or not all(map(math.isfinite, point_range)):
        raise KDBenchError(f"task.point_range is {list(point_range)}; {expected}")
    if len(pillar) != 2 or not all(0 < side < math.inf for side in pillar):
        raise KDBenchError(f"task.pillar is {list(pillar)}; expected two sizes above 0, along x and y, in metres")


def grid_shape(point_range: Sequence[float], pillar: Sequence[float]) -> tuple[int, int]:
    """Returns the cells (y, x) that pillars of a size make of a range.

    Raises:
        KDBenchError: If the pillars do not fill the range, or the cells are no multiple of 8.
    """
    cells = []
    for axis, name in ((1, "y"), (0, "x")):
        extent = point_range[axis + 3] - point_range[axis]
        count = round(extent / pillar[axis])
        if count < 8 or count % 8 or abs(count * pillar[axis] - extent) > 1e-3 * pillar[axis]:
            fit = max(8, 8 * round(count / 8))
            raise KDBenchError(
                f"range spans {extent:g} m along {name}, {extent / pillar[axis]:g} pillars of {pillar[axis]:g} m, "
                f"expected a multiple of 8: the nearest is {fit} ({fit * pillar[axis]:g} m)"
            )
        cells.append(count)
    return cells[0], cells[1]
