"""Masked generative distillation.

Paper: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022: the student's aligned feature is
masked at random and a block of two convolutions generates the teacher's whole feature from it; the squared distance is
summed over a sample. In detection each level of the pyramid has a block and a mask of its own, elsewhere it is the
deepest grid alone.
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
from kdbench.methods.blocks import conv, levels
from kdbench.signals import total


class MGD(Method):
    """Generates the teacher's feature from a masked feature of the student.

    Args:
        ratio: Share of the mask that is zero.
        mask: ``channels`` or ``positions``; drawn anew for each sample and step.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid, pyramid=True),)

    def __init__(
        self,
        ratio: Annotated[float, Field(ge=0, lt=1)] = 0.15,
        mask: Literal["channels", "positions"] = "channels",
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.mask: Literal["channels", "positions"] = mask

    def build(self, probe: Signals) -> None:
        """Makes the aligning convolution and the generation block of each feature."""
        self.align, self.generate = nn.ModuleList(), nn.ModuleList()
        for student, teacher in levels(probe, "feature"):
            axes, width, own = teacher.values.ndim - 2, teacher.values.shape[1], student.values.shape[1]
            self.align.append(nn.Identity() if own == width else conv(axes, own, width, bias=True))
            self.generate.append(
                nn.Sequential(conv(axes, width, width, 3, bias=True), nn.ReLU(), conv(axes, width, width, 3, bias=True))
            )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``mgd``, the sum over features."""
        losses, draw = [], ctx.generator("mgd")
        blocks = zip(levels(signals, "feature"), self.align, self.generate, strict=True)
        for (student, teacher), align, generate in blocks:
            size = tuple(map(min, student.values.shape[2:], teacher.values.shape[2:]))
            aligned = align(average_pool(student.values, size))
            mask = random_mask(aligned, self.ratio, self.mask, draw)
            losses.append(mgd_loss(generate(aligned * mask), average_pool(teacher.values, size)))
        return {"mgd": total(losses)}
