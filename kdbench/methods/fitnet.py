"""Hints from an intermediate feature.

Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3. The hint is a layer from the middle: which
one, the pair says (``published.fitnet``; layer 2 in the released code of Tian et al.).
Deviation: hint and task are trained together, as the later literature does, instead of one after the other.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench.features import Grid
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import conv
from kdbench.plugin import Method, Need
from kdbench.signals import Context, Signals


class FitNet(Method):
    """A 1x1 convolution brings the student's grid to the teacher's width, where they are compared."""

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid),)

    def build(self, probe: Signals) -> None:
        """Makes the regressor."""
        student, teacher = probe.pair("feature")
        self.regressor = conv(student.values.dim() - 2, student.values.shape[1], teacher.values.shape[1], bias=True)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``hint``."""
        student, teacher = signals.pair("feature")
        return {"hint": hint_loss(*pool_to_smaller(self.regressor(student.values), teacher.values, "fitnet"))}
