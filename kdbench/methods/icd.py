"""Instance-conditional distillation.

Paper: Kang, Zhang, Zhang, Sun, Zheng, "Instance-Conditional Knowledge Distillation for Object Detection", NeurIPS
2021: a decoder is asked for each true instance, by class, a point inside and rough size, and for made-up ones; it
learns to tell them apart and to find the box in the teacher's pyramid. Where it looks, the student's values are
brought to the teacher's.
Read: the authors' code, MegEngine/ICD (``pytorch_release``); of the paper its abstract alone. Constants are those of
the code for RetinaNet: 8 heads, a decoder of one layer, five made-up instances for each true one, points off the
centre by up to 0.3 of the box, weight 8.
Deviations: made-up instances have any class, and sides of 0.2 of the image with a deviation of 0.2, as the code does
for data other than COCO. The decoder trains with the optimizer of the run, in the code with AdamW at 0.0001 and
clipped gradients; distillation begins at once, there after 1000 steps; padding of images is looked at; the student
does not start from the teacher's neck and head.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Grid, KDBenchError, Logits, Method, Need, Signals
from kdbench.functional.icd import SIZES, describe_instances, instance_losses, instance_value_loss, sine_embedding
from kdbench.methods.blocks import levels, strides, true_boxes

#: Width of the embedding of a coordinate of a point; true instances of an image that are asked for at most.
POINT, MOST = 128, 50
#: How far a point lies off the centre of its box.
JITTER = 0.3


def perceptron(*widths: int) -> nn.Sequential:
    """Makes linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for first, second in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Decoder(nn.Module):
    """One layer of attention of instances to the cells of a pyramid.

    Args:
        width: Of the teacher's feature.
        heads: Of the attention; they divide the width.
        description: Width of what describes an instance.
    """

    def __init__(self, width: int, heads: int, description: int) -> None:
        super().__init__()
        self.heads = heads
        self.encode = perceptron(description, width, width, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.place = nn.Linear(4 * max(1, width // 4), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed = perceptron(width, 4 * width, width)
        self.predict = perceptron(width, width, width, 5)

    def forward(self, described: Tensor, cells: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Looks for instances.

        Args:
            described: ``(B, I, description)``.
            cells: ``(B, S, width)``.
            places: Embedded positions of the cells, ``(S, …)``.

        Returns:
            Predictions ``(B, I, 5)``, attention ``(B, heads, I, S)`` and values ``(B, heads, S, width / heads)``.
        """
        asked = self.encode(described)
        query, key, value = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(asked), self.key(cells + self.place(places)), self.value(cells))
        )
        attention = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(3)
        found = self.norms[0](asked + self.out((attention @ value).transpose(1, 2).flatten(2)))
        return self.predict(self.norms[1](found + self.feed(found))), attention, value


class ICD(Method):
    """Distils the places that a decoder attends to when it looks for an instance.

    Args:
        heads: Of the decoder; they divide the width of the teacher's feature.
        negatives: Made-up instances for each true one.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True), Need("logits", Logits, ("student",)))
    requires: ClassVar[frozenset[str]] = frozenset({"boxes"})
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"

    def __init__(self, heads: PositiveInt = 8, negatives: NonNegativeInt = 5) -> None:
        super().__init__()
        self.heads = heads
        self.negatives = negatives

    def build(self, probe: Signals) -> None:
        """Makes the decoder of the teacher's feature and the student's values."""
        pairs, scores = levels(probe, "stages"), probe.feature("logits", "student")
        assert isinstance(scores, Logits)
        self.classes = scores.values.shape[scores.class_dim]
        widths = {(s.values.shape[1], t.values.shape[1]) for s, t in pairs}
        if len(widths) > 1:
            raise KDBenchError(f"ICD: found levels of the widths {sorted(widths)}, expected one width a side")
        ((student, teacher),) = widths
        if teacher % self.heads:
            raise KDBenchError(f"method.heads={self.heads}: expected a divisor of the teacher's width {teacher}")
        self.decoder = Decoder(teacher, self.heads, self.classes + 2 * POINT + 2 * SIZES)
        self.value = nn.Linear(student, teacher)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``identify`` and ``localise``, which train the decoder, and ``icd``."""
        pairs = levels(signals, "stages")
        ours, theirs = (torch.cat([level.values.flatten(2) for level in side], 2) for side in zip(*pairs, strict=True))
        first, size = pairs[0][1], pairs[0][1].values.shape[2:]
        down, across = (n * s for n, s in zip(size, strides(first, size), strict=True))
        extent = torch.tensor([across, down], device=theirs.device)
        boxes, labels, there = self._instances(*true_boxes(signals), extent, ctx)
        real = there & (torch.arange(labels.shape[1], device=labels.device) < labels.shape[1] // (1 + self.negatives))
        with torch.no_grad():
            length = boxes[..., 2:] - boxes[..., :2]
            draw = torch.rand(length.shape, generator=ctx.generator("icd", "points")).to(length)
            points = boxes[..., :2] + length * (0.5 + JITTER * (2 * draw - 1))
            sides = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], 2)
            described = describe_instances(boxes, labels, points, extent, self.classes, POINT)
            places = torch.cat([self._places(teacher.values) for _, teacher in pairs])
        predicted, attention, values = self.decoder(described, theirs.transpose(1, 2), places)
        identify, localise = instance_losses(predicted, sides, real, there)
        weight = (attention.detach() * real[:, None, :, None]).sum(2)
        student = self.value(ours.transpose(1, 2)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        loss = instance_value_loss(student, values.detach(), weight)
        return {"identify": identify, "localise": localise, "icd": loss}

    def _instances(self, boxes: Tensor, labels: Tensor, extent: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Returns true boxes as shares of the image, then made-up ones, their classes, and which rows are instances."""
        boxes, labels = F.pad(boxes, (0, 0, 0, 1))[:, :MOST], F.pad(labels, (0, 1), value=-1)[:, :MOST]
        made = (len(boxes), self.negatives * labels.shape[1])
        draw = ctx.generator("icd", "instances")
        centre = 0.03 + 0.94 * torch.rand(*made, 2, generator=draw)
        half = (0.2 + 0.2 * torch.randn(*made, 2, generator=draw)).clamp(2e-3, 0.6) / 2
        false = torch.cat([centre - half, centre + half], 2).clamp(0, 1).to(extent)
        classes = torch.randint(self.classes, made, generator=draw).to(labels)
        wanted = (self.negatives * (labels >= 0).sum(1, keepdim=True)).clamp(min=1)  # one where there is no box
        kept = torch.arange(made[1], device=labels.device) < wanted
        shares = torch.cat([boxes.to(extent) / extent.repeat(2), false], 1)
        return shares, torch.cat([labels, classes], 1), torch.cat([labels >= 0, kept], 1)

    def _places(self, level: Tensor) -> Tensor:
        """Returns embedded positions of the cells of a level ``(cells, …)``."""
        width = 2 * max(1, level.shape[1] // 4)
        tall, wide = (
            sine_embedding((torch.arange(n, device=level.device, dtype=level.dtype) + 1) / n, width)
            for n in level.shape[2:]
        )
        both = torch.cat([tall[:, None].expand(-1, len(wide), -1), wide[None].expand(len(tall), -1, -1)], 2)
        return both.flatten(0, 1)
