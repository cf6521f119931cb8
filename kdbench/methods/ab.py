"""Activation boundaries: an initialisation of the student.

Paper: Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
AAAI 2019: the alternative loss with layer weights ``2^(i-n+1)``, i = 0..n-1, deepest 1, and 0.003 over all.
Deviations: after the initial stage the student learns from labels alone, as in RepDistiller's tables, where the paper
also tries KD. The initial stage keeps its learning rate, as there. In it the student is in train mode, as in the
authors' code (RepDistiller: eval).
A connector falls away with the initial stage, so there is none where the student can learn the boundaries itself.
``faithful=code`` has RepDistiller's rule, no connector where shapes agree and elsewhere its regressor without ReLU;
``paper`` the authors', no connector where widths agree and elsewhere a 1x1 convolution and batch normalisation. Grids
that are still of different sizes are pooled to the smaller one before the loss.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import Activated, Context, Method, Need, Signals, Stage
from kdbench.functional.ab import activation_boundary_loss
from kdbench.functional.numerics import Faithful
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import connector, conv_regressor, levels
from kdbench.signals import total


class AB(Method):
    """First the student's neurons fire where the teacher's do, then the student learns the task.

    Args:
        margin: How far from zero the student's neurons are pushed.
        faithful: ``code`` (RepDistiller) or ``paper``: where a connector stands, and which.
        init_epochs: Length of the first stage as a share of the configured epochs, on top of them.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Activated, many=True),)

    def __init__(
        self, margin: PositiveFloat = 1.0, faithful: Faithful = "code", init_epochs: PositiveFloat = 0.125
    ) -> None:
        super().__init__()
        self.margin = margin
        self.faithful = faithful
        self.init_epochs = init_epochs

    def build(self, probe: Signals) -> None:
        """Makes a connector for each level that needs one."""
        self.connectors = nn.ModuleList(self._connector(s.pre, t.pre) for s, t in levels(probe, "stages"))

    def _connector(self, student: Tensor, teacher: Tensor) -> nn.Module:
        if self.faithful == "paper":
            return nn.Identity() if student.shape[1] == teacher.shape[1] else connector(student, teacher)
        same = student.shape[1:] == teacher.shape[1:]
        return nn.Identity() if same else conv_regressor(student, teacher, relu=False)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ab``, the weighted sum over levels."""
        pairs = levels(signals, "stages")
        losses = []
        for level, ((s, t), connect) in enumerate(zip(pairs, self.connectors, strict=True)):
            student, teacher = pool_to_smaller(connect(s.pre), t.pre, "ab")
            weight = 2.0 ** (level - len(pairs) + 1)
            losses.append(weight * activation_boundary_loss(student, teacher, self.margin))
        return {"ab": total(losses)}

    def stages(self) -> tuple[Stage, ...]:
        """Returns the boundary stage and the task stage."""
        return (
            Stage("init", self.init_epochs, terms=("ab",), constant=True),
            Stage("distil", terms=("task",), trains=("student",)),
        )
