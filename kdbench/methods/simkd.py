"""The reused teacher classifier.

Paper: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022: one
l2 loss between the last maps, the student's through a projector (convolutions of size 1, 3, 1, batch normalisation and
ReLU after each); the student answers through the teacher's classifier. Its own is neither trained nor used.
Constants of the released code: mean over elements; the larger map is average-pooled to the smaller before it is
projected; no supervised loss.

At inference the projector and the teacher's classifier must be kept. For maps of S and T channels, factor f and C
classes they add ST/f + 9(T/f)^2 + T^2/f kernel weights, 2(2T/f + T) of the normalisation and TC + C of the classifier.
Deviations: a pooled student map is pooled by the ratio of the sizes on the probed batch, so that inference needs no
teacher; on inputs of one size that is the same. Where a student has one more convolution between its last stage and the
pooling (MobileNetV2, ShuffleNetV2), the map behind it is projected, in the released code the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from kdbench import Artifact, Context, Grid, Last, Logits, Method, Need, Part, Signals
from kdbench.functional.pool import average_pool, global_average
from kdbench.functional.simkd import simkd_loss
from kdbench.methods.blocks import BatchNorm, check_pooled, conv
from kdbench.roles.sources import Tapped


class Projector(nn.Module):
    """Brings the student's map to the teacher's width, and down to its size where that is smaller.

    Args:
        inputs: Width of the student's map.
        outputs: Width of the teacher's map.
        factor: The hidden width is ``outputs // factor``.
        ratio: Size of the teacher's map over that of the student's, along each axis.
    """

    def __init__(self, inputs: int, outputs: int, factor: int, ratio: Sequence[float]) -> None:
        super().__init__()
        axes, hidden = len(ratio), max(1, outputs // factor)
        self.ratio = tuple(min(1.0, r) for r in ratio)
        self.layers = nn.Sequential(
            *(conv(axes, inputs, hidden), BatchNorm(hidden), nn.ReLU()),
            *(conv(axes, hidden, hidden, 3), BatchNorm(hidden), nn.ReLU()),
            *(conv(axes, hidden, outputs), BatchNorm(outputs), nn.ReLU()),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Projects (B, C, *space)."""
        size = [max(1, round(n * r)) for n, r in zip(feature.shape[2:], self.ratio, strict=True)]
        return self.layers(average_pool(feature, size))


class Reused(nn.Module):
    """What SimKD deploys: student up to its last map, projector, global average, the teacher's classifier.

    Args:
        student: Gives its last map.
        projector: Of the method.
        classifier: Of the teacher, from (B, C) to logits.
    """

    def __init__(self, student: Tapped, projector: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.projector = projector
        self.classifier = classifier

    def forward(self, *inputs: Any) -> Tensor:
        """Returns the logits for what the plain student takes."""
        return self.classifier(global_average(self.projector(self.student(*inputs))))


class SimKD(Method):
    """Aligns the student's last map with the teacher's, whose classifier it reuses.

    Args:
        factor: Narrows the hidden layers of the projector: fewer parameters, less accuracy.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", (Last, Grid)), Need("logits", Logits, roles=("teacher",)))
    parts: ClassVar[tuple[Part, ...]] = (Part("classifier"),)

    def __init__(self, factor: PositiveInt = 2) -> None:
        super().__init__()
        self.factor = factor

    def build(self, probe: Signals) -> None:
        """Makes the projector and notes what inference needs."""
        student, teacher = (feature.values for feature in probe.pair("feature"))
        check_pooled(probe, "feature", "teacher")
        ratio = [t / s for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        self.projector = Projector(student.shape[1], teacher.shape[1], self.factor, ratio)
        self.tap = probe.tap("feature", "student")
        # In a tuple, because it stays the teacher's.
        self.classifier = (probe.part("classifier"),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``simkd``."""
        student, teacher = signals.pair("feature")
        return {"simkd": simkd_loss(self.projector(student.values), teacher.values)}

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns a module around the student with the weights of all parts shared."""
        return {"student": Artifact(Reused(Tapped(models["student"], self.tap), self.projector, self.classifier[0]))}
