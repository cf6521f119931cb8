"""Anchors of a bird's-eye-view detector: their boxes, the box code, and who answers for which ground truth.

Boxes are (x, y, z centre, l, w, h, yaw) in metres and radians, LiDAR frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.errors import KDBenchError, nearest
from tasks.pointcloud.boxes import limit_period

BACKGROUND = -1
IGNORED = -2
YAWS = (0.0, math.pi / 2)
DIR_OFFSET = -math.pi / 2
SIZE_LIMIT = 4.0  # of the log size that a code says, a factor of 55: a network may say any, and exp(89) is infinite


class AnchorClass(NamedTuple):
    """The anchor of one class: size (l, w, h) and bottom z in metres, IoU from which it is positive, below negative."""

    size: tuple[float, float, float]
    bottom: float
    positive: float
    negative: float


KITTI_ANCHORS = {
    "Pedestrian": AnchorClass((0.8, 0.6, 1.73), -0.6, 0.5, 0.35),
    "Cyclist": AnchorClass((1.76, 0.6, 1.73), -0.6, 0.5, 0.35),
    "Car": AnchorClass((3.9, 1.6, 1.56), -1.78, 0.6, 0.45),
}


def anchor_table(thresholds: Mapping[str, tuple[float, float]]) -> dict[str, AnchorClass]:
    """Returns KITTI's anchors with other thresholds."""
    table = dict(KITTI_ANCHORS)
    for name, (positive, negative) in thresholds.items():
        if name not in table:
            raise KDBenchError(f"task.thresholds.{name}: there is no such class: {nearest(name, table)}")
        if not 1 >= positive >= negative >= 0:
            found = f"task.thresholds.{name} is {[positive, negative]}"
            raise KDBenchError(f"{found}; expected the positive one first: 1 >= positive >= negative >= 0")
        table[name] = table[name]._replace(positive=positive, negative=negative)
    return table


def of_class(name: str, table: Mapping[str, AnchorClass]) -> AnchorClass:
    """Returns the anchor of a class.

    Raises:
        KDBenchError: There is none.
    """
    if name not in table:
        raise KDBenchError(f"class {name!r} has no anchor; {nearest(name, table)}")
    return table[name]


class Anchors(nn.Module):
    """One anchor per class and yaw (0 and 90 degrees) at the centre of each cell of a head.

    Args:
        point_range: x, y, z minimum, then x, y, z maximum in metres.
        grid: Cells (y, x) of the head.
        classes: Class names, in the order of the logits.
        table: The anchor of each class.

    Attributes:
        boxes: (A, 7), over y, x, class and yaw, the last fastest.

    Raises:
        KDBenchError: For a class without an anchor.
    """

    boxes: Tensor
    x: Tensor
    y: Tensor
    sizes: Tensor
    centres: Tensor
    yaws: Tensor
    thresholds: Tensor

    def __init__(
        self,
        point_range: Sequence[float],
        grid: tuple[int, int],
        classes: Sequence[str] = tuple(KITTI_ANCHORS),
        table: dict[str, AnchorClass] | None = None,
    ) -> None:
        super().__init__()
        table = KITTI_ANCHORS if table is None else table
        chosen = [of_class(name, table) for name in classes]
        self.grid, self.classes = tuple(grid), tuple(classes)
        self.cell = tuple((point_range[axis + 3] - point_range[axis]) / n for axis, n in ((1, grid[0]), (0, grid[1])))
        self.low = (point_range[1], point_range[0])

        y, x = (low + (torch.arange(n) + 0.5) * cell for low, n, cell in zip(self.low, grid, self.cell, strict=True))
        sizes = torch.tensor([c.size for c in chosen])
        centres = torch.tensor([c.bottom + c.size[2] / 2 for c in chosen])
        thresholds = torch.tensor([(c.positive, c.negative) for c in chosen])
        own = {"x": x, "y": y, "sizes": sizes, "centres": centres, "yaws": torch.tensor(YAWS), "thresholds": thresholds}
        for name, value in own.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("boxes", self.all_boxes(), persistent=False)

    def all_boxes(self) -> Tensor:
        """Makes the boxes (A, 7) out of what they have in common."""
        shape = (len(self.y), len(self.x), len(self.sizes), len(self.yaws))
        columns = [
            self.x[None, :, None, None],
            self.y[:, None, None, None],
            self.centres[:, None],
            *(self.sizes[:, k, None] for k in range(3)),
            self.yaws,
        ]
        return torch.stack([column.expand(shape) for column in columns], -1).reshape(-1, 7)

    def __len__(self) -> int:
        return len(self.boxes)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Codes boxes (..., 7) relative to anchors (..., 7) as in SECOND (Yan et al., 2018), the inverse of ``decode``."""
    centre, size, yaw = boxes[..., :3], boxes[..., 3:6], boxes[..., 6:]
    anchor_centre, anchor_size, anchor_yaw = anchors[..., :3], anchors[..., 3:6], anchors[..., 6:]
    offset = (centre - anchor_centre) / _scale(anchor_size)
    return torch.cat([offset, (size / anchor_size).log(), yaw - anchor_yaw], -1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Returns the boxes (..., 7) that codes (..., 7) say relative to anchors (..., 7), their sizes bounded."""
    anchor_size = anchors[..., 3:6]
    centre = codes[..., :3] * _scale(anchor_size) + anchors[..., :3]
    size = codes[..., 3:6].clamp(-SIZE_LIMIT, SIZE_LIMIT).exp() * anchor_size
    return torch.cat([centre, size, codes[..., 6:] + anchors[..., 6:]], -1)


def _scale(size: Tensor) -> Tensor:
    """Returns what centre offsets are divided by: the diagonal of the base for x and y, the height for z; (..., 3)."""
    diagonal = torch.linalg.vector_norm(size[..., :2], dim=-1)
    return torch.stack([diagonal, diagonal, size[..., 2]], -1)


def heading_bin(yaw: Tensor) -> Tensor:
    """Returns the half turn that a yaw lies in: 0 for [-pi/2, pi/2), 1 for the other."""
    # Rounding can put a yaw just below a full turn into a bin of its own.
    return (limit_period(yaw - DIR_OFFSET, 0, 2 * math.pi) / math.pi).floor().clamp(0, 1).long()


def with_heading(yaw: Tensor, heading: Tensor) -> Tensor:
    """Returns the yaw modulo pi that lies in the half turn ``heading``, in [-pi/2, 3 pi/2)."""
    return limit_period(yaw - DIR_OFFSET, 0, math.pi) + DIR_OFFSET + math.pi * heading.to(yaw.dtype)


@torch.no_grad()
def assign_per_class(anchors: Anchors, boxes: Tensor, labels: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Assigns ground truth to the anchors of its own class by nearest-BEV IoU.

    An anchor takes the box it overlaps most if that IoU reaches the class's positive threshold, is background below the
    negative one, and is ignored between them. Each box also takes its best anchors (several if they tie) if their IoU
    reaches the negative threshold; of two boxes that claim one anchor so, the later gets it.

    IoUs are computed only in a window around each box outside which none can reach the negative threshold.

    Args:
        anchors: The A anchors.
        boxes: Ground truth of the whole batch, (N, 7).
        labels: Index of each box's class in ``anchors.classes``, (N,).
        batch: The sample of each box, (N,).
        batch_size: Samples of the batch.

    Returns:
        For each anchor of each sample the index of its box, ``BACKGROUND`` or ``IGNORED``, (batch_size, A).
    """
    matched = torch.full((batch_size * len(anchors),), BACKGROUND, device=boxes.device)
    if len(boxes) == 0:
        return matched.view(batch_size, -1)
    positive, negative = anchors.thresholds[labels].unbind(1)

    # Extent along (y, x) of each box, its yaw snapped to an axis, (N, 2), and of its class's anchors, (N, 2 yaws, 2).
    across = limit_period(boxes[:, 6], 0.5, math.pi).abs() > math.pi / 4
    extent = torch.where(across[:, None], boxes[:, 3:5], boxes[:, [4, 3]])
    size = anchors.sizes[labels][:, :2]
    anchor_extent = torch.stack([size.flip(1), size], 1)

    # IoU >= t needs an overlap of t / (1 + t) times the sum of the sides along each axis.
    bound = (1 - negative) / (1 + negative)
    reach = ((anchor_extent + extent[:, None]) / 2 * bound[:, None, None]).amax((0, 1)).tolist()
    overlaps, cells = [], []
    for axis, centres in enumerate((anchors.y, anchors.x)):
        cell, low = anchors.cell[axis], anchors.low[axis]
        centre = boxes[:, 1 - axis]
        radius = int(reach[axis] / cell + 0.5)
        window = torch.arange(-radius, radius + 1, device=boxes.device)
        # Cells beyond the grid become its last ones: an anchor that is listed twice does no harm.
        index = (((centre - low) / cell).floor().long()[:, None] + window).clamp(0, len(centres) - 1)
        place = centres[index][:, None]
        half, anchor_half = extent[:, axis, None, None] / 2, anchor_extent[:, :, axis, None] / 2
        middle = centre[:, None, None]
        overlap = torch.minimum(middle + half, place + anchor_half) - torch.maximum(middle - half, place - anchor_half)
        overlaps.append(overlap.clamp(min=0))
        cells.append(index)
    shared = overlaps[0][..., :, None] * overlaps[1][..., None, :]  # (N, yaws, window y, window x)
    union = (extent.prod(1)[:, None] + anchor_extent.prod(2))[..., None, None] - shared
    iou = shared / union

    box, yaw, row, column = (iou >= negative[:, None, None, None]).nonzero(as_tuple=True)
    iou = iou[box, yaw, row, column]
    site = cells[0][box, row] * anchors.grid[1] + cells[1][box, column]
    anchor = (site * len(anchors.classes) + labels[box]) * len(YAWS) + yaw + batch[box] * len(anchors)

    matched[anchor] = IGNORED
    best = iou.new_zeros(len(matched)).scatter_reduce(0, anchor, iou, "amax")
    wins = (iou == best[anchor]) & (iou >= positive[box])
    matched.scatter_reduce_(0, anchor[wins], box[wins], "amin", include_self=False)
    claims = iou == iou.new_zeros(len(boxes)).scatter_reduce(0, box, iou, "amax")[box]
    matched.scatter_reduce_(0, anchor[claims], box[claims], "amax", include_self=False)
    return matched.view(batch_size, -1)
