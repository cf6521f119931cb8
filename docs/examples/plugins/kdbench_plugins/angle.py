"""A method: features compared by their angle."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.numerics import safe_mean, upcast


class Angle(Method):
    """A 1x1 convolution brings the student's grid to the teacher's width, where ``1 - cosine`` is the loss."""

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid),)

    def build(self, probe: Signals) -> None:
        """Makes the projector from the shapes of one real batch."""
        student, teacher = probe.pair("feature")
        self.projector = nn.Conv2d(student.values.shape[1], teacher.values.shape[1], 1)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``angle``."""
        student, teacher = signals.pair("feature")
        cosine = F.cosine_similarity(upcast(self.projector(student.values)), upcast(teacher.values), dim=1)
        return {"angle": safe_mean(1 - cosine)}
