"""Masked generative distillation.

Paper: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022: the student's aligned feature is
masked at random and a block of two convolutions generates the teacher's whole feature from it; the squared distance is
summed over a sample.
The paper masks positions, and so does the released code of detection and segmentation; that of classification masks
channels (``mask``). As in the code, widths are aligned by a convolution of size 1 where they differ, else not at all.
Deviation: maps of different size, which the code refuses, are average-pooled to the smaller size along each axis.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.mgd import mgd_loss, random_mask
from kdbench.functional.pool import average_pool
from kdbench.methods.blocks import conv


class MGD(Method):
    """Generates the teacher's feature from a masked feature of the student.

    Args:
        ratio: Share of the mask that is zero.
        mask: ``channels`` or ``positions``; drawn anew for each sample and step.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid),)

    def __init__(
        self,
        ratio: Annotated[float, Field(ge=0, lt=1)] = 0.15,
        mask: Literal["channels", "positions"] = "channels",
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.mask: Literal["channels", "positions"] = mask

    def build(self, probe: Signals) -> None:
        """Makes the aligning convolution and the generation block."""
        student, teacher = (feature.values for feature in probe.pair("feature"))
        axes, width = teacher.ndim - 2, teacher.shape[1]
        same = student.shape[1] == width
        self.align = nn.Identity() if same else conv(axes, student.shape[1], width, bias=True)
        self.generate = nn.Sequential(
            conv(axes, width, width, 3, bias=True), nn.ReLU(), conv(axes, width, width, 3, bias=True)
        )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``mgd``."""
        student, teacher = (feature.values for feature in signals.pair("feature"))
        size = tuple(map(min, student.shape[2:], teacher.shape[2:]))
        aligned = self.align(average_pool(student, size))
        mask = random_mask(aligned, self.ratio, self.mask, ctx.generator("mgd"))
        return {"mgd": mgd_loss(self.generate(aligned * mask), average_pool(teacher, size))}
