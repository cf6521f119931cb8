"""SECOND (Yan, Mao & Li, Sensors 2018): voxels, sparse 3-D convolutions, and the head of PointPillars.

The architecture is that of PointDistiller's voxel detector, mmdetection3d's: voxels of 0.05 x 0.05 x 0.1 m that hold
the mean of their points, a sparse encoder to an eighth of the resolution, two blocks of 2-D convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.errors import KDBenchError
from tasks.pointcloud.detector import AnchorHead, Backbone, DensePart, Neck, check_columns, grid_shape, rank, remember
from tasks.pointcloud.sparse import SparseEncoder, flatten, keys_of, sites

ENCODER_CHANNELS = (16, 32, 64, 64)
ENCODER_OUTPUT = 128
BLOCK_CHANNELS = (128, 256)
BLOCK_DEPTHS = (5, 5)
NECK_CHANNELS = 256
SPLIT = 4  # voxels along a side of a pillar
LAYERS = 24  # of voxels along z at least, or the encoder leaves none


class VoxelOutputs(NamedTuple):
    """What the network says about a batch of B samples, and its features of the voxels that hold points.

    Attributes:
        cls: Class logits, (B, A, C), anchors as of ``detector.PillarOutputs``.
        box: Box codes, (B, A, 7); see ``anchors.decode``.
        direction: Logits of the two heading bins, (B, A, 2).
        voxels: Features of the M voxels, from the first stage of the sparse encoder, (M, F).
        coords: Their (batch, z, y, x) cells, (M, 4).
        centres: Of these cells, x, y, z in metres, (M, 3).
        counts: Points of each voxel, (M,).
    """

    cls: Tensor
    box: Tensor
    direction: Tensor
    voxels: Tensor
    coords: Tensor
    centres: Tensor
    counts: Tensor


class VoxelEncoder(nn.Module):
    """The mean of the points of each voxel, without parameters.

    Args:
        point_range: x, y, z minimum, then x, y, z maximum, metres.
        cells: Voxels (z, y, x) of the range.
        in_channels: Columns of a point.
        max_points: Points of a voxel that are read, the first ones in input order; None takes all.
    """

    low: Tensor
    size: Tensor
    limits: Tensor

    def __init__(
        self,
        point_range: Sequence[float],
        cells: tuple[int, int, int],
        in_channels: int = 4,
        max_points: int | None = 5,
    ) -> None:
        super().__init__()
        self.in_channels, self.max_points = in_channels, max_points
        limits = torch.tensor(cells[::-1])
        low, high = torch.tensor(point_range, dtype=torch.float64).view(2, 3)
        # One layer on top is always empty: with it, four halvings along z end in whole cells.
        self.shape = (cells[0] + 1, cells[1], cells[2])
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("size", ((high - low) / limits).float(), persistent=False)
        self.register_buffer("limits", limits.float(), persistent=False)

    def forward(self, points: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the means (M, in_channels), sorted keys (M,) and point counts (M,) of the voxels that hold points.

        Points outside the range or with a NaN are left out.

        Args:
            points: x, y, z in metres and further columns, (P, in_channels).
            batch: The sample of each point, (P,).
        """
        check_columns(points, self.in_channels)
        cell = ((points[:, :3] - self.low) / self.size).floor()
        inside = ((cell >= 0) & (cell < self.limits)).all(1)
        points, batch, cell = points[inside], batch[inside], cell[inside]
        keys, voxel = torch.unique(
            keys_of(torch.cat([batch[:, None], cell.long().flip(1)], 1), self.shape), return_inverse=True
        )
        if self.max_points is not None:
            first = rank(voxel) < self.max_points
            points, voxel = points[first], voxel[first]
        counts = voxel.bincount(minlength=len(keys))
        means = points.new_zeros(len(keys), points.shape[1]).index_add(0, voxel, points) / counts[:, None]
        return means, keys, counts

    def centres(self, coords: Tensor) -> Tensor:
        """Returns the centres (M, 3) in metres of voxels (M, 4), in float32 whatever the features are in."""
        return self.low + (coords[:, 1:].flip(1).float() + 0.5) * self.size


class SECOND(nn.Module):
    """SECOND; the defaults are the three-class KITTI model with 5.326 M parameters, 0.712 M of them sparse.

    Args:
        width: Factor on all channels: 1/2 and 1/4 are the students called 4x and 16x (by parameters) in PointDistiller.
        point_range: x, y, z minimum, then x, y, z maximum, in metres, LiDAR frame.
        pillar: Size along x and y in metres of what is 4 x 4 voxels and a quarter of a cell of the head, as a pillar is
            in ``PointPillars``. The grid must be a multiple of 8 pillars along both.
        classes: Class names, in the order of the logits.
        in_channels: Columns of a point.
        max_points: Points of a voxel that are read; None takes all.
        height: Of a voxel, metres.
        norm_momentum: Share of a batch in the running statistics.

    Attributes:
        head_grid: Cells (y, x) of the head, those of the canvas.
        canvas_channels: Channels of the bird's-eye view that the 2-D part reads.

    Raises:
        KDBenchError: For a range that voxels do not fill, or are too low for the encoder, or a grid that is no multiple
            of 8 pillars.
    """

    def __init__(
        self,
        width: float = 1.0,
        point_range: Sequence[float] = (0, -40, -3, 70.4, 40, 1),
        pillar: Sequence[float] = (0.2, 0.2),
        classes: Sequence[str] = ("Pedestrian", "Cyclist", "Car"),
        in_channels: int = 4,
        max_points: int | None = 5,
        height: float = 0.1,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        first, *_ = channels = [round(width * c) for c in ENCODER_CHANNELS]
        if first < 1:
            raise KDBenchError(f"width={width} leaves no channel, expected at least {1 / ENCODER_CHANNELS[0]:.3f}")
        self.point_range, self.classes = tuple(point_range), tuple(classes)
        rows, columns = grid_shape(point_range, pillar)
        self.head_grid = (rows // 2, columns // 2)
        self.voxels = VoxelEncoder(
            point_range, (layers(point_range, height), SPLIT * rows, SPLIT * columns), in_channels, max_points
        )
        outputs = round(width * ENCODER_OUTPUT)
        self.encoder = SparseEncoder(in_channels, channels, outputs)
        self.canvas_channels = outputs * flat_depth(self.voxels.shape[0])
        blocks = [round(width * c) for c in BLOCK_CHANNELS]
        neck = round(width * NECK_CHANNELS)
        self.backbone = Backbone(self.canvas_channels, blocks, BLOCK_DEPTHS, strides=(1, 2))
        self.neck = Neck(blocks, neck)
        self.head = self.make_head(neck * len(blocks), width)
        remember(self, norm_momentum)

    def make_head(self, channels: int, width: float) -> nn.Module:
        """Creates the head for a map of so many channels."""
        return AnchorHead(channels, len(self.classes))

    @property
    def grid(self) -> tuple[int, int]:
        """Cells (y, x) of the canvas."""
        return self.head_grid

    def forward(self, points: Tensor, batch: Tensor, batch_size: int) -> VoxelOutputs:
        """Runs the network on the points of a whole batch.

        Args:
            points: x, y, z in metres and further columns, (P, in_channels); may be empty.
            batch: The sample of each point, (P,), in [0, batch_size); a sample may have none.
            batch_size: Samples of the batch.
        """
        means, keys, counts = self.voxels(points, batch)
        stages = self.encoder(means, keys, self.voxels.shape)
        last, cells, shape = stages[-1]
        canvas = flatten(last, cells, shape, batch_size)
        cls, box, direction = self.head(self.neck(self.backbone(canvas)))
        coords = sites(keys, self.voxels.shape)
        return VoxelOutputs(cls, box, direction, stages[0][0], coords, self.voxels.centres(coords), counts)

    def dense_part(self) -> DensePart:
        """Returns all after the sparse encoder as a module that reads a canvas (B, canvas_channels, y, x)."""
        part = DensePart(self.backbone, self.neck, self.head)
        part.training = self.training
        return part


def layers(point_range: Sequence[float], height: float) -> int:
    """Returns the layers of voxels of a height in a range.

    Raises:
        KDBenchError: If they do not fill it, or are too few for the encoder.
    """
    extent = point_range[5] - point_range[2]
    count = round(extent / height)
    if abs(count * height - extent) > 1e-3 * height or count < LAYERS:
        near = max(count, LAYERS)
        raise KDBenchError(
            f"range spans {extent:g} m along z, {extent / height:g} voxels of {height:g} m, expected a whole number of "
            f"at least {LAYERS}: the nearest is {near} (height={extent / near:g})"
        )
    return count


def flat_depth(depth: int) -> int:
    """Returns the cells along z that the sparse encoder makes of ``depth`` ones, by its kernels, strides, paddings."""
    for kernel, padding in ((3, 1), (3, 1), (3, 0), (3, 0)):
        depth = (depth + 2 * padding - kernel) // 2 + 1
    return depth
