"""Knowledge review: each level of the teacher teaches the student's level and all deeper ones.

Paper: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021: residual learning framework,
attention-based fusion (ABF) and hierarchical context loss (HCL), as in the released code.
Its constants: fusions as wide as the student's deepest level, at most 512; kernels drawn by
``kaiming_uniform(a=1)``; the pooled vector is the deepest level, one cell large; the teacher's stem does not teach; the
teacher's grids are those before their activation, where a task tells, and the student's those after it (on ImageNet the
release takes the student's before it too).
Deviations: the weight grows linearly by step over a share of training, 20 of 240 epochs, where the code grows it by
epoch. A task without pooled vectors (dense prediction) has its grids alone, as the paper's detectors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from kdbench import Activated, Context, Grid, Method, Need, Signals, Vector
from kdbench.functional.reviewkd import hierarchical_context_loss
from kdbench.methods.blocks import BatchNorm, conv
from kdbench.signals import total


def resize(feature: Tensor, space: Sequence[int]) -> Tensor:
    """Nearest-neighbour interpolation to a spatial size."""
    return feature if feature.shape[2:] == torch.Size(space) else F.interpolate(feature, tuple(space))


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student level with what the deeper levels gave.

    Args:
        axes: Spatial axes.
        inputs: Width of the student's level.
        middle: Width in which levels are fused.
        outputs: Width of the teacher's level.
        fuse: False for the deepest level, which has nothing to be fused with.
    """

    def __init__(self, axes: int, inputs: int, middle: int, outputs: int, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(conv(axes, inputs, middle), BatchNorm(middle))
        self.expand = nn.Sequential(conv(axes, middle, outputs, 3), BatchNorm(outputs))
        self.attention = conv(axes, 2 * middle, 2, bias=True) if fuse else None
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(block[0].weight, a=1)  # type: ignore[arg-type]

    def forward(self, level: Tensor, deeper: Tensor | None, space: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the level in the teacher's shape, and the fused feature for the next shallower level.

        Args:
            level: The student's, (B, C, *space).
            deeper: Fused feature of the next deeper level.
            space: Spatial size of the teacher's level.
        """
        fused = self.reduce(level)
        if self.attention is not None and deeper is not None:
            deeper = resize(deeper, fused.shape[2:])
            own, other = self.attention(torch.cat((fused, deeper), 1)).sigmoid().split(1, 1)
            fused = own * fused + other * deeper
        fused = resize(fused, space)
        return self.expand(fused), fused


class ReviewKD(Method):
    """Fuses the student's levels from deep to shallow and compares each fusion with the teacher's level.

    Args:
        width: Largest width of the fusions; narrower students fuse at the width of their deepest level.
    """

    needs: ClassVar[tuple[Need, ...]] = (
        Need("stages", Grid, many=True),
        # A grid where the task pools none: then there is no further level.
        Need("pooled", (Vector, Grid)),
    )

    def __init__(self, width: PositiveInt = 512) -> None:
        super().__init__()
        self.width = width

    @staticmethod
    def levels(signals: Signals, role: str) -> list[Tensor]:
        """Returns the levels of a role from deep to shallow, the pooled vector as a grid of one cell."""
        features = signals.features("stages", role)
        levels = [f.pre if role == "teacher" and isinstance(f, Activated) else f.values for f in features]
        pooled = signals.feature("pooled", role)
        if isinstance(pooled, Vector):
            levels.append(pooled.values.reshape(*pooled.values.shape, *(1 for _ in levels[-1].shape[2:])))
        return levels[::-1]

    def build(self, probe: Signals) -> None:
        """Makes a fusion for each level."""
        student, teacher = self.levels(probe, "student"), self.levels(probe, "teacher")
        axes, middle = student[0].ndim - 2, min(self.width, student[0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(axes, s.shape[1], middle, t.shape[1], fuse=depth > 0)
            for depth, (s, t) in enumerate(zip(student, teacher, strict=True))
        )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``review``, the sum over levels."""
        losses: list[Tensor] = []
        deeper: Tensor | None = None
        student, teacher = self.levels(signals, "student"), self.levels(signals, "teacher")
        for fusion, level, guide in zip(self.fusions, student, teacher, strict=True):
            output, deeper = fusion(level, deeper, guide.shape[2:])
            losses.append(hierarchical_context_loss(output, guide))
        return {"review": total(losses)}
