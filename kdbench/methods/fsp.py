"""Flow of the solution procedure: an initialisation of the student.

Paper: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
Learning", CVPR 2017, eq. 1 and 2.
Deviations: the mean over the Gram matrix instead of the squared norm, average pooling, and a first stage of constant
learning rate, as in RepDistiller, which begins with the stem's grid, though, where here the first stage's is the first,
and leaves the student in eval mode in the first stage; here it is in train mode.
Paper and tables need students as wide as the teacher; ``project=true`` serves other pairs with a 1x1 convolution at
each level whose widths differ, which trains in the first stage and then falls away. Where widths agree it changes
nothing.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Grid, Method, Need, Signals, Stage
from kdbench.functional.fsp import fsp_loss
from kdbench.methods.blocks import levels, projectors


class FSP(Method):
    """First the Gram matrices between consecutive grids follow the teacher's, then the student learns the task.

    Args:
        project: Projects student grids of another width; without it such pairs are refused.
        init_epochs: Length of the first stage as a share of the configured epochs, on top of them.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)

    def __init__(self, project: bool = True, init_epochs: PositiveFloat = 0.125) -> None:
        super().__init__()
        self.project = project
        self.init_epochs = init_epochs

    def build(self, probe: Signals) -> None:
        """Makes the projections."""
        self.projectors = projectors(levels(probe, "stages", at_least=2), self.project)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``fsp``, the sum over pairs of consecutive grids."""
        student, teacher = zip(*levels(signals, "stages", at_least=2), strict=True)
        projected = [project(s.values) for s, project in zip(student, self.projectors, strict=True)]
        return {"fsp": fsp_loss(projected, [t.values for t in teacher])}

    def stages(self) -> tuple[Stage, ...]:
        """Returns the flow stage and the task stage."""
        return (
            Stage("init", self.init_epochs, terms=("fsp",), constant=True),
            Stage("distil", terms=("task",), trains=("student",)),
        )
