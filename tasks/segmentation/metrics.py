"""Scores of segmentation: what the confusion matrix of the whole set tells, and how well boundaries are met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from tasks.segmentation.sources.base import IGNORED

#: Distance within which a boundary is met, as a share of the image's diagonal (Csurka et al., below).
TOLERANCE = 0.0075


class Overlap(MulticlassConfusionMatrix):
    """Overlap with the truth, from the confusion matrix of all pixels that have a class.

    ``compute`` returns, in percent, ``miou``, the mean over the classes of intersection over union, of those that occur
    in truth or prediction (Everingham et al., IJCV 2015); ``pixel_acc``; ``class_acc``, the mean recall of the classes
    that occur in the truth; and ``iou``, each class's own by its name.

    Args:
        classes: Their names.
        kwargs: As for ``torchmetrics.Metric``.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    def __init__(self, classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(len(classes), ignore_index=IGNORED, validate_args=False, **kwargs)
        self.names = tuple(classes)

    def compute(self) -> dict[str, Any]:  # type: ignore[override]
        """Returns the scores of all pixels so far."""
        matrix = self.confmat.cpu().double()
        hit, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        union = true + said - hit
        iou = 100 * hit / union
        return {
            "miou": iou[union > 0].mean(),
            "pixel_acc": 100 * hit.sum() / matrix.sum(),
            "class_acc": 100 * (hit / true)[true > 0].mean(),
            "iou": dict(zip(self.names, iou, strict=True)),
        }


class Boundary(Metric):
    """Boundary F-score.

    Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation?, BMVC 2013. For every image
    and class: the share of the predicted boundary that is within :data:`TOLERANCE` times the diagonal of the true one,
    that of the true one near the predicted one, and their harmonic mean. ``compute`` returns ``boundary_f``, the mean
    over the classes of the mean over the images in which the class has a boundary in truth or prediction, in percent.
    Pixels without a class have no boundary, nor has anything next to them one for their sake.

    Args:
        classes: How many there are.
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        for name in ("total", "images"):
            self.add_state(name, torch.zeros(classes), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Adds images: classes ``(B, H, W)`` int64, :data:`IGNORED` where the truth has none."""
        predicted = torch.where(truth == IGNORED, IGNORED, predicted)
        radius = TOLERANCE * math.hypot(*truth.shape[1:])
        edges = [edge(labels) for labels in (predicted, truth)]
        for c in range(self.classes):
            said, true = (at & (labels == c) for at, labels in zip(edges, (predicted, truth), strict=True))
            counted = [boundary.count_nonzero((1, 2)) for boundary in (said, true)]
            if not (counted[0] + counted[1]).any():
                continue
            near = [widened(boundary, radius) for boundary in (true, said)]
            met = [(b & n).count_nonzero((1, 2)) for b, n in zip((said, true), near, strict=True)]
            precision, recall = (m / count.clamp(min=1) for m, count in zip(met, counted, strict=True))
            score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
            self.total[c] += score.sum()
            self.images[c] += (counted[0] + counted[1] > 0).sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns the score of all images so far."""
        seen = self.images > 0
        return {"boundary_f": 100 * (self.total / self.images.clamp(min=1))[seen].mean()}


def edge(labels: Tensor) -> Tensor:
    """Says which pixels of ``(B, H, W)`` have a neighbour to the side, above or below of another class."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        first, second = labels.narrow(axis, 0, labels.shape[axis] - 1), labels.narrow(axis, 1, labels.shape[axis] - 1)
        differ = (first != second) & (first != IGNORED) & (second != IGNORED)
        before, after = [0, 0, 0, 0], [0, 0, 0, 0]
        before[2 * (2 - axis) + 1] = after[2 * (2 - axis)] = 1
        found |= F.pad(differ, before) | F.pad(differ, after)
    return found


def widened(mask: Tensor, radius: float) -> Tensor:
    """Says which pixels of ``(B, H, W)`` have a pixel of ``mask`` within a distance, from middle to middle.

    A disc is a stack of rows, and a row has a pixel where the counts up to its two ends differ.
    """
    reach, (tall, wide) = int(radius), mask.shape[1:]
    before = F.pad(F.pad(mask, (reach, reach)).cumsum(2, dtype=torch.int32), (1, 0))
    found = torch.zeros_like(mask)
    for shift in range(-min(reach, tall - 1), min(reach, tall - 1) + 1):
        half = int(math.sqrt(radius**2 - shift**2))
        along = before.narrow(2, reach + half + 1, wide) > before.narrow(2, reach - half, wide)
        found[:, max(0, shift) : tall + min(0, shift)] |= along[:, max(0, -shift) : tall - max(0, shift)]
    return found
