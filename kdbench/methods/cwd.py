"""Channel-wise distillation.

Paper: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, eq. 3 and 5.
It reads the maps of class scores (weight 3 in the authors' runs) where a task has them, in detection every level of the
pyramid (weight 10, temperature 1 in mmrazor's runs), elsewhere the deepest grid. Bound to features, as by
``method.bind.maps=NAME method.weights.cwd=50``, a 1x1 convolution brings the student to the teacher's width where they
differ. Temperature 4.
Deviations: positions of class scores that are not distilled (the ignored label) have no part, in the released code they
have. The authors' projector of features has batch normalisation and ReLU behind the convolution, that of the later
comparisons by Yang et al. (CIRKD, CVPR 2022) is the convolution alone, as here; those add pixel-wise KD and an
adversarial term, the authors' best row neither.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Feature, Grid, Logits, Method, Need, Signals
from kdbench.functional.cwd import channel_wise_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import conv, levels
from kdbench.signals import total


class CWD(Method):
    """Compares where in an image each channel is active.

    Args:
        temperature: Divides the values before the softmax over positions.
    """

    needs: ClassVar[tuple[Need, ...]] = (
        Need("maps", (Logits, Grid), pyramid=True, given={Logits: "dense_label"}),  # else class scores are no maps
    )

    def __init__(self, temperature: PositiveFloat = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def build(self, probe: Signals) -> None:
        """Makes the projector of each feature whose widths differ."""
        self.projectors = nn.ModuleList()
        for student, teacher in levels(probe, "maps"):
            (s, _), (t, _) = maps(student), maps(teacher)
            differ = s.shape[1] != t.shape[1] and isinstance(student, Grid)
            self.projectors.append(conv(s.dim() - 2, s.shape[1], t.shape[1]) if differ else nn.Identity())

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``cwd``, the sum over features."""
        losses = []
        for (ours, theirs), project in zip(levels(signals, "maps"), self.projectors, strict=True):
            (student, mask), (teacher, _) = maps(ours), maps(theirs)
            student = project(student)
            if mask is None:
                student, teacher = pool_to_smaller(student, teacher, "cwd")
            losses.append(channel_wise_loss(student, teacher, self.temperature, mask))
        return {"cwd": total(losses)}


def maps(feature: Feature) -> tuple[Tensor, Tensor | None]:
    """Returns class scores or a grid as maps ``(B, C, *space)``, with the positions that count ``(B, *space)``."""
    if isinstance(feature, Logits):
        return feature.values.movedim(feature.class_dim, 1), feature.mask
    return feature.values, None
