"""What detectors are given and what they answer with, the same for both packages of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kdbench.features import Boxes, Feature


class Target(NamedTuple):
    """What is known of an image.

    Attributes:
        boxes: ``(N, 4)`` left, top, right, bottom in input pixels.
        labels: ``(N,)`` classes.
        crowd: ``(K, 4)`` regions of many objects, which count neither as objects nor as background.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class Inputs(NamedTuple):
    """A batch of images.

    Attributes:
        images: ``(B, 3, H, W)`` RGB from 0 to 255, each in the upper left corner.
        sizes: ``(B, 2)`` height and width of each.
    """

    images: Tensor
    sizes: Tensor

    def shapes(self) -> list[tuple[int, int]]:
        """Returns height and width of each image."""
        return [(tall, wide) for tall, wide in self.sizes.tolist()]


class Outputs(NamedTuple):
    """Raw outputs.

    Attributes:
        raw: By kind of prediction (classes, boxes, …) the tensors that the head gave, of each level or of all.
        features: Maps of the levels, finest first.
        logits: ``(B, A, C)`` class scores of all rows.
        boxes: ``(B, A, 4)`` predicted boxes, input pixels.
        anchors: ``(A, 4)`` where they start from.
    """

    raw: tuple[tuple[Tensor, ...], ...]
    features: tuple[Tensor, ...]
    logits: Tensor
    boxes: Tensor
    anchors: Tensor

    def level(self) -> Tensor:
        """Returns which level each row is of, ``(A,)``."""
        cells = torch.tensor([f.shape[2] * f.shape[3] for f in self.features], device=self.logits.device)
        each = self.logits.shape[1] // int(cells.sum())
        return torch.arange(len(cells), device=cells.device).repeat_interleave(each * cells)


class Found(NamedTuple):
    """Detections of an image, best first: ``(N, 4)`` input pixels, ``(N,)`` classes, ``(N,)`` scores."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Rules(NamedTuple):
    """How rows become detections where nothing but class scores and boxes counts.

    Attributes:
        score: Least score.
        per_level: Most candidates of a level; None for all.
        overlap: Of a box with a better one of its class, beyond which it is left out.
        most: Detections.
        least_side: Beyond which both sides of a box have to be, pixels; None for any.
        mean: Three values from 0 to 255, RGB, which padding becomes zero by.
    """

    score: float
    per_level: int | None
    overlap: float
    most: int
    least_side: float | None
    mean: tuple[float, ...]


class Adapter(Protocol):
    """How the task speaks with the detectors of a package."""

    def forward(self, model: nn.Module, inputs: Inputs) -> Outputs:
        """Runs a detector, without any loss."""

    def raw(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class scores and boxes of images of one size, in operations that can be exported."""

    def rules(self, model: nn.Module, outputs: Outputs) -> Rules | None:
        """Returns how detections come out of what ``raw`` gives, None where more is needed than that."""

    def loss(self, model: nn.Module, outputs: Outputs, inputs: Inputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Returns the detector's own supervised terms."""

    def predict(self, model: nn.Module, outputs: Outputs, inputs: Inputs) -> list[Found]:
        """Returns the detections of each image, after non-maximum suppression."""

    def cross_head(self, model: nn.Module, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> dict[str, Feature]:
        """Returns what the rest of the head makes of what its last stacked convolutions read."""

    def assigned(self, model: nn.Module, boxes: Boxes, targets: Sequence[Target]) -> Tensor:
        """Returns for each row the true box that the detector's own assigner gives it, -1 for none, ``(B, A)``."""


def chosen(outputs: Outputs, inputs: Inputs, rows: Tensor) -> tuple[Outputs, Inputs]:
    """Returns what belongs to some samples of a batch, ``rows`` ``(N,)`` integers."""

    def taken(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each[rows] for each in maps)

    kept = Outputs(
        tuple(taken(kind) for kind in outputs.raw),
        taken(outputs.features),
        outputs.logits[rows],
        outputs.boxes[rows],
        outputs.anchors,
    )
    return kept, Inputs(inputs.images[rows], inputs.sizes[rows])
