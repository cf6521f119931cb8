"""Features compared by Pearson's correlation.

Paper: Cao, Zhang, Gao, Cheng, Cheng, Cheng, "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022: ``1 - r`` of every channel over the cells of the whole batch, the mean over
channels, summed over the levels of the pyramid. The weight is 6 for two-stage detectors and 10 for one-stage ones.
Read: the authors' code in open-mmlab/mmrazor (``pkd_loss.py``, its configurations). There the deepest of the five
levels of RetinaNet is left out; here every level has a part, ``method.bind.stages=[…]`` chooses. ``faithful=code``
takes variances that divide by m - 1 for m values, so that the loss is (m - 1) / m of the paper's.
Deviations: a 1x1 convolution brings the student to the teacher's width where they differ, which the code refuses; grids
of two sizes are averaged to the smaller, where the code resizes the student's linearly. The code adds 1e-6 to
deviations.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.numerics import Faithful
from kdbench.functional.pkd import pearson_feature_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import levels, projectors
from kdbench.signals import total


class PKD(Method):
    """Correlates every channel of the student with the teacher's, at every grid that both give.

    Args:
        faithful: ``paper`` or ``code``, see the head of this file.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)
    over_batch: ClassVar[bool] = True

    def __init__(self, faithful: Faithful = "paper") -> None:
        super().__init__()
        self.faithful = faithful

    def build(self, probe: Signals) -> None:
        """Makes a projector for each grid whose widths differ."""
        self.projectors = projectors(levels(probe, "stages"), project=True)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``pkd``, the sum over grids."""
        losses = []
        for (student, teacher), project in zip(levels(signals, "stages"), self.projectors, strict=True):
            grids = pool_to_smaller(project(student.values), teacher.values, "pkd")
            losses.append(pearson_feature_loss(*grids, self.faithful))
        return {"pkd": total(losses)}
