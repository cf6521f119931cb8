"""Scenes moved by a rigid pose and a scale, with gradients to these: points, boxes and the scores of anchors alike.

Boxes are ``(N, 7)`` x, y, z of the centre, l, w, h and yaw; the sensor is at the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdbench.features import Feature, Logits
from kdbench.functional.hard_affine import grid_positions, sample_images
from kdbench.task import Batch, Carry, Warp
from tasks.pointcloud.boxes import limit_period

#: About the sensor's z axis, radians; natural logarithm of the factor; along x and y, in halves of the range.
POSE = ("yaw", "scale", "shift_x", "shift_y")


class Pose:
    """A pose and a scale for each of B scenes: ``p' = s R p + t``.

    Args:
        numbers: ``(B, 4)`` as in :data:`POSE`.
        point_range: x, y, z minimum, then x, y, z maximum, metres.
    """

    def __init__(self, numbers: Tensor, point_range: Sequence[float]) -> None:
        low, high = numbers.new_tensor(point_range).view(2, 3)[:, :2]
        self.centre, self.half = (low + high) / 2, (high - low) / 2
        self.yaw, self.scale = numbers[:, 0], numbers[:, 1].exp()
        self.cos, self.sin = self.yaw.cos(), self.yaw.sin()
        self.shift = numbers[:, 2:] * self.half

    def move(self, points: Tensor, scene: Tensor) -> Tensor:
        """Moves points ``(P, 3)`` of scenes ``(P,)``."""
        cos, sin, scale = self.cos[scene], self.sin[scene], self.scale[scene]
        x, y, z = points.unbind(1)
        shift = self.shift[scene]
        return torch.stack(
            [scale * (cos * x - sin * y) + shift[:, 0], scale * (sin * x + cos * y) + shift[:, 1], scale * z], 1
        )

    def source(self, positions: Tensor) -> Tensor:
        """Says where cells come from: across and down of the range (N, 2), from -1 to 1, to the same ``(B, N, 2)``."""
        metres = (self.centre + self.half * positions - self.shift[:, None]) / self.scale[:, None, None]
        x, y = metres.unbind(2)
        cos, sin = self.cos[:, None], self.sin[:, None]
        turned = torch.stack([cos * x + sin * y, cos * y - sin * x], 2)
        return (turned - self.centre) / self.half


def carry_map(scores: Logits, pose: Pose, grid: tuple[int, ...]) -> Logits:
    """Takes scores of cells (B, y x x x rows of a cell, C) to where the cells are after the pose.

    Args:
        scores: Cells over y and x, then what each holds several of.
        pose: Of each scene.
        grid: Cells (y, x).
    """
    height, width = grid
    samples, rows, classes = scores.values.shape
    maps = scores.values.view(samples, height, width, -1).permute(0, 3, 1, 2)
    places = pose.source(grid_positions(height, width, maps))
    carried = sample_images(maps, places, (height, width)).permute(0, 2, 3, 1)
    return replace(scores, values=carried.reshape(samples, rows, classes))


def rigid_warp(point_range: Sequence[float], carry: Callable[[Logits, Pose], Logits]) -> Warp:
    """Returns the warp of scenes in a range.

    Args:
        point_range: x, y, z minimum, then x, y, z maximum, metres; boxes centred outside after the move are dropped.
        carry: Takes class scores along.
    """

    def move(batch: Batch, numbers: Tensor) -> tuple[Batch, Carry]:
        points, scene = batch.inputs["points"], batch.inputs["batch"]
        pose = Pose(numbers.to(points.dtype), point_range)
        moved = torch.cat([pose.move(points[:, :3], scene), points[:, 3:]], 1)

        def carried(feature: Feature) -> Feature:
            assert isinstance(feature, Logits)
            return carry(feature, pose)

        return batch.with_inputs({**batch.inputs, "points": moved}, targets=_labels(batch, pose, point_range)), carried

    return Warp(POSE, move)


@torch.no_grad()
def _labels(batch: Batch, pose: Pose, point_range: Sequence[float]) -> dict[str, Tensor]:
    boxes, scene = batch.targets["boxes"], batch.targets["batch"]
    centres = pose.move(boxes[:, :3], scene)
    sizes, yaw = (
        boxes[:, 3:6] * pose.scale[scene, None],
        limit_period(boxes[:, 6] + pose.yaw[scene], period=2 * torch.pi),
    )
    moved = torch.cat([centres, sizes, yaw[:, None]], 1)
    low, high = boxes.new_tensor(point_range).view(2, 3)
    inside = ((centres >= low) & (centres < high)).all(1)
    return {"boxes": moved[inside], "labels": batch.targets["labels"][inside], "batch": scene[inside]}
