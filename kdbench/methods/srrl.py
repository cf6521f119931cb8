"""Softmax regression representation learning.

Paper: Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation Learning",
ICLR 2021: L_FM matches the penultimate features, L_SR what the teacher's classifier says of them, both as l2 losses.
Constants of the released code: means over elements, weights 1 and 1, connector g of a convolution of size 1, batch
normalisation and ReLU with kernels drawn by He's fan-out rule.
Public codes differ in where g stands: on the penultimate vector (here by default, as in the SimKD authors' tables), or
in the paper's own code on the last grid before it is averaged: ``bind: {pooled: <name of the last grid>}``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdbench import Context, Grid, Method, Need, Part, Signals, Vector
from kdbench.functional.srrl import srrl_losses
from kdbench.methods.blocks import BatchNorm, conv


class SRRL(Method):
    """The teacher's classifier shall say the same of the student's connected feature as of the teacher's.

    The classifier is part of the frozen teacher: a gradient passes through it, none comes to it.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("pooled", (Vector, Grid)),)
    parts: ClassVar[tuple[Part, ...]] = (Part("classifier"),)

    def build(self, probe: Signals) -> None:
        """Makes the connector."""
        student, teacher = (feature.values.shape[1] for feature in probe.pair("pooled"))
        kernel = conv(1, student, teacher)
        nn.init.kaiming_normal_(kernel.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        self.connector = nn.Sequential(kernel, BatchNorm(teacher), nn.ReLU())

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``fm`` (feature matching) and ``sr`` (softmax regression)."""
        student, teacher = signals.pair("pooled")
        values = student.values
        # A convolution of size 1 sees no space: cells, or the one of a vector, lie on one axis.
        connected = self.connector(values.flatten(2) if values.ndim > 2 else values.unsqueeze(2))
        matching, regression = srrl_losses(connected, teacher.values, signals.part("classifier"))
        return {"fm": matching, "sr": regression}
