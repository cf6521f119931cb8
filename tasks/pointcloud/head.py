"""What a task asks of a kind of head: targets, loss, weights of rows, detections. The task knows no boxes itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from kdbench.base.collectives import normalizer
from kdbench.features import Logits
from kdbench.task import Batch
from tasks.pointcloud.decode import Detections
from tasks.pointcloud.motion import Pose


class Head(Protocol):
    """Outputs of one kind of detector.

    Attributes:
        terms: Names of the supervised terms.
    """

    terms: ClassVar[tuple[str, ...]]

    def mark(self, scores: Logits, batch: Batch) -> Logits:
        """Gives class scores (B, A, C) the mask and the weight of each row."""
        ...

    def loss(self, model: Any, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Returns the supervised terms, unweighted."""
        ...

    def decode(self, model: Any, outputs: Any) -> list[Detections]:
        """Returns the detections of each sample."""
        ...

    def peaks(self, batch: Batch, count: int) -> Tensor:
        """Returns how near each of ``count`` rows of class scores is to the centre of an object, (B, count)."""
        ...

    def carry(self, scores: Logits, pose: Pose) -> Logits:
        """Takes class scores of scenes as they were to where they are after a pose has moved them."""
        ...


def balanced(scores: Logits, foreground: Tensor, batch: Batch) -> Logits:
    """Weighs foreground and background rows the same in sum, as there are hundreds of times more of these.

    Args:
        scores: (B, A, C).
        foreground: Rows that answer for an object, (B, A); those that the supervised loss ignores are background.
        batch: Says which samples are distilled.
    """
    positives = normalizer(foreground.sum())
    weight = torch.where(foreground, 1.0 / positives, 1.0 / (foreground.numel() - positives).clamp(min=1))
    mask = None if batch.distilled is None else batch.distilled[:, None].expand(weight.shape)
    return replace(scores, mask=mask, weight=weight)
