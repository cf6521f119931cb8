"""KITTI average precision as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from kdbench.errors import KDBenchError
from tasks.pointcloud.kitti import Objects
from tasks.pointcloud.kitti_ap import CLASSES, DIFFICULTIES, METRICS, Result, evaluate, mean_ap


class KittiAP(Metric):
    """KITTI 2-D, BEV and 3-D average precision and orientation similarity (``aos``) in percent.

    ``compute`` returns scalars named ``<class>_<metric>_<difficulty>_<interpolation>``, such as
    ``pedestrian_3d_moderate_r40``, and with ``map`` for the mean over the classes that have valid ground truth; the
    usual primary figure is ``map_3d_moderate_r40``. R40 and R11 come for every metric and difficulty, ``all`` (see
    :mod:`tasks.pointcloud.kitti_ap`) for moderate. nan where a class has no valid ground truth.

    Args:
        classes: Which classes to evaluate.
        metrics: Which of them; without a camera ``2d`` and ``aos`` mean nothing.
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True

    def __init__(self, classes: Sequence[str] = CLASSES, metrics: Sequence[str] = METRICS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = tuple(classes)
        self.metrics = tuple(metrics)
        self._frames: list[tuple[Objects, Objects]] = []

    def update(self, detections: Sequence[Objects], ground_truth: Sequence[Objects]) -> None:
        """Adds frames: detections with score, and labels (DontCare included), one entry each per frame."""
        if len(detections) != len(ground_truth):
            raise KDBenchError(f"{len(ground_truth)} frames of ground truth but {len(detections)} of detections")
        self._frames.extend(zip(ground_truth, detections, strict=True))

    def compute(self) -> dict[str, Tensor]:
        """Evaluates the frames of all processes."""
        return self._evaluate(self._gathered())

    def reset(self) -> None:
        """Forgets all frames."""
        super().reset()
        self._frames = []

    def forward(self, detections: Sequence[Objects], ground_truth: Sequence[Objects]) -> dict[str, Tensor]:
        """Adds frames and evaluates these alone."""
        self.update(detections, ground_truth)
        return self._evaluate(list(zip(ground_truth, detections, strict=True)))

    def _gathered(self) -> list[tuple[Objects, Objects]]:
        # Frames are not tensors, so that torchmetrics' own reduction does not see them.
        if not self.distributed_available_fn():
            return self._frames
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self._frames)
        return [frame for part in parts for frame in part]

    def _evaluate(self, frames: list[tuple[Objects, Objects]]) -> dict[str, Tensor]:
        ground_truth, detections = [gt for gt, _ in frames], [det for _, det in frames]
        result = evaluate(ground_truth, detections, self.classes, metrics=self.metrics)
        return {name: torch.tensor(value, device=self.device) for name, value in _flatten(result, self.metrics).items()}


def _flatten(result: Result, metrics: Sequence[str]) -> dict[str, float]:
    flat = {}
    for metric in metrics:
        for difficulty in DIFFICULTIES:
            for interpolation in ("R40", "R11", "all") if difficulty == "moderate" else ("R40", "R11"):
                key = f"{metric}_{difficulty}_{interpolation.lower()}"
                flat[f"map_{key}"] = mean_ap(result, metric, interpolation, difficulty)
                for name, by_metric in result.items():
                    flat[f"{name.lower()}_{key}"] = by_metric[metric][interpolation][difficulty]
    return flat
