"""Distillation of singular vectors.

Paper: Lee, Kim, Song, "Self-supervised Knowledge Distillation using Singular Value Decomposition", ECCV 2018,
over positions and channels of a grid as in the authors' code and RepDistiller (mdistiller: over the rows of a map).
Deviations, from RepDistiller: the sign of a vector, which an SVD leaves open and on which the loss depends, is fixed by
its sum, where there the linear algebra library decides (it may differ between tall and wide matrices); where singular
values coincide the gradient fades, where there it is not finite.
Paper and code need students as wide as the teacher; ``project=true`` serves other pairs with a 1x1 convolution at each
level whose widths differ. Where widths agree it changes nothing.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.kdsvd import kdsvd_loss
from kdbench.methods.blocks import levels, projectors


class KDSVD(Method):
    """The main directions of consecutive grids relate as the teacher's do.

    Args:
        k: Singular vectors of each grid.
        project: Projects student grids of another width; without it such pairs are refused.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)

    def __init__(self, k: PositiveInt = 1, project: bool = True) -> None:
        super().__init__()
        self.k = k
        self.project = project

    def build(self, probe: Signals) -> None:
        """Makes the projections."""
        self.projectors = projectors(levels(probe, "stages", at_least=2), self.project)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kdsvd``, the sum over pairs of consecutive grids."""
        student, teacher = zip(*levels(signals, "stages", at_least=2), strict=True)
        projected = [project(s.values) for s, project in zip(student, self.projectors, strict=True)]
        return {"kdsvd": kdsvd_loss(projected, [t.values for t in teacher], self.k)}
