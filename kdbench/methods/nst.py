"""Neuron selectivity transfer.

Paper: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017: squared MMD
with the polynomial kernel (d = 2, c = 0), that of RepDistiller's tables; the linear and Gaussian ones are left out.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.nst import nst_loss
from kdbench.methods.blocks import levels
from kdbench.signals import total


class NST(Method):
    """The student's neurons fire at the places where the teacher's do, at every grid that both give."""

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``nst``, the sum over grids."""
        losses = [nst_loss(s.values, t.values) for s, t in levels(signals, "stages")]
        return {"nst": total(losses)}
