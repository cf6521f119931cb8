"""PointRCNN (Shi, Wang & Li, CVPR 2019) on raw points: PointNet++, a box for each point, a second look at the best.

The networks are those of PointDistiller's point detector, mmdetection3d's variant of the paper: boxes of eight values
instead of bins, scores of classes instead of one of the foreground. What is chosen by a rule here and by chance there
(the points of a scan, of a box) is spread evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from kdbench.errors import KDBenchError
from tasks.pointcloud import anchors as coding
from tasks.pointcloud.boxes import inside, limit_period, turned
from tasks.pointcloud.detector import check_columns, prior_bias, rank, remember
from tasks.pointcloud.pointnet2 import PROPAGATED, SETS, PointNet2, RowMLP, SetAbstraction
from tasks.pointcloud.pointset import ball_query, dense, evenly, farthest_points, take

HEAD_CHANNELS = (256, 256)
LOOK_CHANNELS = (128, 128)
LOOK_SETS = ((128, 128, 128), (128, 128, 256), (256, 256, 512))
LOOK_RADII = (0.2, 0.4)  # m, of the first two layers; the last takes all that is left
LOOK_SAMPLES = 16
LEAST = 256  # points, of which the deepest layer has one
CODE = 8
DEPTH_SCALE, DEPTH_SHIFT = 70.0, 0.5  # m; the published normalisation of the distance of a point
POOL_BLOCK = 1 << 22  # bounds the memory of a pool, not the result


class PointOutputs(NamedTuple):
    """What the first stage says about the N points that are read of each of B samples.

    Attributes:
        cls: Class logits, (B, N, C).
        box: Box codes, (B, N, 8); see :func:`decode`.
        xyz: Where the points are, metres, (B, N, 3).
        features: From the last feature propagation, (B, N, F).
    """

    cls: Tensor
    box: Tensor
    xyz: Tensor
    features: Tensor


class Proposals(NamedTuple):
    """Boxes that the second stage looks at, sample after sample, best first.

    Attributes:
        boxes: (R, 7), metres and radians.
        labels: Their classes, (R,).
        sample: The sample of each, (R,).
    """

    boxes: Tensor
    labels: Tensor
    sample: Tensor

    def select(self, which: Tensor) -> Proposals:
        """Returns those that a mask or an index names."""
        return Proposals(self.boxes[which], self.labels[which], self.sample[which])


def upright(sizes: Tensor, centres: Tensor | None = None) -> Tensor:
    """Returns boxes (…, 7) of sizes (…, 3) about centres (…, 3), the origin by default, that are not turned."""
    centres = torch.zeros_like(sizes) if centres is None else centres
    return torch.cat([centres, sizes, torch.zeros_like(sizes[..., :1])], -1)


def encode(boxes: Tensor, points: Tensor, sizes: Tensor) -> Tensor:
    """Codes boxes (…, 7) seen from points (…, 3), the inverse of :func:`decode`.

    Args:
        boxes: x, y, z of the centre, l, w, h, yaw.
        points: Where they are seen from, metres.
        sizes: Mean sizes l, w, h of their classes, (…, 3).

    Returns:
        (…, 8): the centre by the diagonal of the base and by the height, logarithms of sizes by the mean ones, cosine
        and sine of the yaw.
    """
    placed = coding.encode(boxes, upright(sizes, points))[..., :6]
    return torch.cat([placed, boxes[..., 6:].cos(), boxes[..., 6:].sin()], -1)


def decode(codes: Tensor, points: Tensor, sizes: Tensor) -> Tensor:
    """Returns the boxes (…, 7) that codes (…, 8) say of points (…, 3) of classes with mean sizes (…, 3)."""
    placed = coding.decode(codes[..., :7], upright(sizes, points))
    return torch.cat([placed[..., :6], torch.atan2(codes[..., 7:], codes[..., 6:7])], -1)


def canonical(boxes: Tensor, frames: Tensor) -> Tensor:
    """Returns boxes (R, 7) in the frames of others (R, 7), their yaws within a quarter turn: the half turn is lost."""
    offset = boxes[:, :3] - frames[:, :3]
    yaw = limit_period(boxes[:, 6:] - frames[:, 6:])
    return torch.cat([turned(offset[:, :2], -frames[:, 6]), offset[:, 2:], boxes[:, 3:6], yaw], 1)


def refined(codes: Tensor, frames: Tensor) -> Tensor:
    """Returns the boxes (R, 7) that codes (R, 7) of the second stage make of the boxes that it looked at (R, 7)."""
    own = coding.decode(codes, upright(frames[:, 3:6]))
    centre = torch.cat([turned(own[:, :2], frames[:, 6]), own[:, 2:3]], 1) + frames[:, :3]
    return torch.cat([centre, own[:, 3:6], own[:, 6:] + frames[:, 6:]], 1)


class PointHead(nn.Module):
    """Class logits and box codes of every point, by two maps of its features.

    Args:
        inputs: Channels of a point.
        channels: Of the maps' layers.
        classes: How many there are.
    """

    def __init__(self, inputs: int, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.cls = nn.Sequential(RowMLP((inputs, *channels)), nn.Linear(channels[-1], classes))
        self.box = nn.Sequential(RowMLP((inputs, *channels)), nn.Linear(channels[-1], CODE))
        prior_bias(self.cls[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, N, C) and codes (B, N, 8) for features (B, N, F)."""
        return self.cls(features), self.box(features)


class SecondLook(nn.Module):
    """The second stage: a PointNet++ over the points in a box, to a score and a correction of the box.

    Args:
        inputs: Channels of a point's feature, the same as those of the map of its coordinates.
        widths: Of the three layers of set abstraction.
        channels: Of the last maps' layers.
        number: Points of a box.
    """

    def __init__(self, inputs: int, widths: Sequence[Sequence[int]], channels: Sequence[int], number: int) -> None:
        super().__init__()
        own = 5  # x, y, z, the first stage's score, the distance from the sensor
        self.counts = (max(1, number // 4), max(1, number // 16))
        self.up = nn.Sequential(nn.Linear(own, inputs), nn.ReLU(), nn.Linear(inputs, inputs), nn.ReLU())
        self.merge = nn.Sequential(nn.Linear(2 * inputs, inputs), nn.ReLU())
        first, second, last = widths
        self.sets = nn.ModuleList([SetAbstraction(inputs, [first]), SetAbstraction(first[-1], [second])])
        self.whole = RowMLP((second[-1] + 3, *last))
        deep = last[-1]
        # With a bias that BatchNorm takes away: the published configuration asks for it, and its parameters count.
        self.cls = nn.Sequential(RowMLP((deep, *channels), bias=True), nn.Linear(channels[-1], 1))
        self.box = nn.Sequential(RowMLP((deep, *channels), bias=True), nn.Linear(channels[-1], 7))
        nn.init.normal_(self.box[-1].weight, std=0.001)  # type: ignore[arg-type]
        nn.init.zeros_(self.box[-1].bias)  # type: ignore[arg-type]

    def forward(self, own: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (R,) and codes (R, 7) of R boxes with P points each.

        Args:
            own: Coordinates in the frame of the box, score, depth, (R, P, 5).
            features: From the first stage, (R, P, F).
        """
        xyz = own[..., :3]
        values = self.merge(torch.cat([self.up(own), features], -1))
        for layer, count, radius in zip(self.sets, self.counts, LOOK_RADII, strict=True):
            centres = farthest_points(xyz, count)
            near = ball_query(xyz, take(xyz, centres), [radius], [LOOK_SAMPLES])
            xyz, values = layer(xyz, values, centres, near)
        whole = self.whole(torch.cat([xyz.to(values.dtype), values], -1)).amax(1)
        return self.cls(whole)[:, 0], self.box(whole)


class PointRCNN(nn.Module):
    """PointRCNN; the defaults are the three-class KITTI model with 4.04 M parameters.

    Boxes that the second stage looks at, points of a box and boxes that it learns from are shares of ``points``, as are
    the points whose boxes are candidates: 512, 512, 128 and 9000 of 16,384.

    Args:
        width: Factor on all channels, rounded down: 1/2.8 and 1/4 are the students called 8x and 16x in PointDistiller.
        points: That are read of a scan; a multiple of 256. One with fewer has some twice.
        classes: Class names, in the order of the logits.
        in_channels: Columns of a point.
        norm_momentum: Share of a batch in the running statistics.

    Raises:
        KDBenchError: For too few points, too little width, or a class without a mean size.
    """

    sizes: Tensor

    def __init__(
        self,
        width: float = 1.0,
        points: int = 16_384,
        classes: Sequence[str] = ("Pedestrian", "Cyclist", "Car"),
        in_channels: int = 4,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if points < LEAST or points % LEAST:
            near = max(LEAST, LEAST * round(points / LEAST))
            raise KDBenchError(f"points={points}, expected a multiple of {LEAST}: the nearest is {near}")
        if scaled(16, width) < 1:
            raise KDBenchError(f"width={width} leaves no channel, expected at least {1 / 16:.4f}")
        self.points, self.in_channels, self.classes = points, in_channels, tuple(classes)
        self.proposed, self.pooled, self.sampled = points // 32, points // 32, points // 128
        table = torch.tensor([coding.of_class(name, coding.KITTI_ANCHORS).size for name in self.classes])
        self.register_buffer("sizes", table, persistent=False)

        sets = [[[scaled(c, width) for c in own] for own in layer] for layer in SETS]
        propagated = [[scaled(c, width) for c in layer] for layer in PROPAGATED]
        channels = [scaled(c, width) for c in HEAD_CHANNELS]
        self.backbone = PointNet2(in_channels - 3, sets, propagated)
        self.head = PointHead(self.backbone.channels, channels, len(self.classes))
        look = [[scaled(c, width) for c in layer] for layer in LOOK_SETS]
        self.look = SecondLook(scaled(LOOK_CHANNELS[-1], width), look, channels, self.pooled)
        remember(self, norm_momentum)

    def forward(self, points: Tensor, batch: Tensor, batch_size: int) -> PointOutputs:
        """Runs the first stage on the points of a whole batch.

        Args:
            points: x, y, z in metres and further columns, (P, in_channels), samples one after another; may be empty.
            batch: The sample of each point, (P,), in [0, batch_size), ascending.
            batch_size: Samples of the batch.
        """
        check_columns(points, self.in_channels)
        values = dense(points, batch, batch_size, self.points)
        xyz = values[..., :3].contiguous()
        features = self.backbone(xyz, values[..., 3:], self.backbone.geometry(xyz))
        cls, box = self.head(features)
        return PointOutputs(cls, box, xyz, features)

    @torch.no_grad()
    def propose(self, outputs: PointOutputs, overlap: float) -> Proposals:
        """Chooses the boxes that the second stage looks at.

        Of those of the best points a box goes that a better one covers, by the intersection over union of their
        axis-aligned outlines: a turned box is laid along the axis next to it. (The authors leave the turn out too;
        mmdetection3d does not.)

        Args:
            outputs: Of the first stage.
            overlap: From above which a box goes.
        """
        scores, labels = outputs.cls.float().sigmoid().max(-1)
        best, points = scores.topk(scores.shape[1] * 9000 // 16_384, 1)
        labels = labels.gather(1, points)
        boxes = decode(take(outputs.box.float(), points), take(outputs.xyz, points), self.sizes[labels])
        size, number = best.shape
        sample = torch.arange(size, device=best.device).repeat_interleave(number)
        boxes, labels, best = boxes.flatten(0, 1), labels.flatten(), best.flatten()
        flat = outlines(boxes)
        kept = batched_nms(flat - flat.min(), best, sample, overlap)  # it takes coordinates for positive
        kept = kept[sample[kept].argsort(stable=True)]
        kept = kept[rank(sample[kept]) < self.proposed]
        return Proposals(boxes[kept], labels[kept], sample[kept])

    def refine(self, outputs: PointOutputs, proposals: Proposals) -> tuple[Tensor, Tensor]:
        """Looks again at boxes, by the points in them; no gradient reaches the first stage.

        Returns:
            Logits (R,), and codes (R, 7) that :func:`refined` makes boxes of.
        """
        boxes, sample = proposals.boxes, proposals.sample
        with torch.no_grad():
            index, empty = pool(outputs.xyz, boxes, sample, self.pooled)
            score = outputs.cls.float().sigmoid().amax(-1, keepdim=True)
            depth = outputs.xyz.norm(dim=-1, keepdim=True) / DEPTH_SCALE - DEPTH_SHIFT
            flat = index + sample[:, None] * outputs.xyz.shape[1]
            xyz, extra = outputs.xyz.flatten(0, 1)[flat], torch.cat([score, depth], -1).flatten(0, 1)[flat]
            offset = xyz - boxes[:, None, :3]
            across = turned(offset[..., :2], -boxes[:, 6:])
            own = torch.cat([across, offset[..., 2:], extra], -1)
            own, features = (
                values.masked_fill(empty[:, None, None], 0.0)
                for values in (own, outputs.features.detach().flatten(0, 1)[flat])
            )
        return self.look(own.to(features.dtype), features)


def scaled(channels: int, width: float) -> int:
    """Returns a number of channels times a factor, rounded down; 196 / 2.8 is 70 whatever a float makes of 1 / 2.8."""
    return int(width * channels + 1e-4)


def outlines(boxes: Tensor) -> Tensor:
    """Returns left, right, … of boxes (R, 7) from above, (R, 4) x and y from, x and y to, yaws snapped to an axis."""
    across = limit_period(boxes[:, 6]).abs() > torch.pi / 4
    half = torch.where(across[:, None], boxes[:, [4, 3]], boxes[:, 3:5]) / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def pool(xyz: Tensor, boxes: Tensor, sample: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Chooses points in boxes, spread evenly over those that are in it.

    Args:
        xyz: (B, N, 3).
        boxes: (R, 7).
        sample: The sample of each box, (R,).
        number: Points of a box; one with fewer has some twice.

    Returns:
        Indices (R, number) into the points of the sample, and which boxes are empty (R,).
    """
    chosen, empty = [], []
    rows = max(1, POOL_BLOCK // max(1, xyz.shape[1]))
    for box, own in zip(boxes.split(rows), sample.split(rows), strict=True):
        within = inside(xyz[own], box)
        counts = within.sum(1)
        column = within.nonzero()[:, 1]
        places = (counts.cumsum(0) - counts)[:, None] + evenly(counts, number)
        padded = F.pad(column, (0, 1))
        chosen.append(padded[places.clamp(max=len(column))])
        empty.append(counts == 0)
    return torch.cat(chosen), torch.cat(empty)
