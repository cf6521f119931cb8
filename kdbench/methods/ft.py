"""Factor transfer.

Paper: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018:
squared reconstruction error of the paraphraser, then the p-norm between normalised factors.
Deviations: ``faithful=code`` (default, weight 200) compares the energies of the factors, as RepDistiller and the tables
made with it do; ``faithful=paper`` compares whole factors, as the authors' code does with weight 500. As in
RepDistiller the translator has batch normalisation, the paraphraser none, and the paraphraser learns at a constant
rate, a fifth of the run's (there for ResNets and WRNs; the whole of it for other students).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Grid, Method, Need, Signals, Stage
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.ft import factor_loss
from kdbench.functional.numerics import Faithful
from kdbench.methods.blocks import BatchNorm, conv, deconv


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's grid; its code is the factor."""

    def __init__(self, grid: Tensor, width: int) -> None:
        super().__init__()
        axes, full = grid.dim() - 2, grid.shape[1]
        down, up = [(full, full), (full, width), (width, width)], [(width, width), (width, full), (full, full)]
        self.encoder = nn.Sequential(*(m for w in down for m in (conv(axes, *w, 3, bias=True), nn.LeakyReLU(0.1))))
        self.decoder = nn.Sequential(*(m for w in up for m in (deconv(axes, *w, 3), nn.LeakyReLU(0.1))))

    def forward(self, grid: Tensor) -> Tensor:
        """Reconstructs a grid."""
        return self.decoder(self.encoder(grid))


def translator(grid: Tensor, width: int) -> nn.Sequential:
    """Makes the student's side of the paraphraser's encoder."""
    axes, full = grid.dim() - 2, grid.shape[1]
    widths = [(full, full), (full, width), (width, width)]
    blocks = [(conv(axes, *w, 3, bias=True), BatchNorm(w[1]), nn.LeakyReLU(0.1)) for w in widths]
    return nn.Sequential(*(module for block in blocks for module in block))


class FT(Method):
    """First a paraphraser learns the teacher's factors, then the student's translator follows them.

    Args:
        rate: Channels of a factor for each of the teacher's.
        p: Exponent of the difference.
        faithful: ``code`` or ``paper``.
        init_epochs: Length of the paraphraser's stage as a share of the configured epochs, on top of them.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid),)

    def __init__(
        self,
        rate: PositiveFloat = 0.5,
        p: Annotated[float, Field(ge=1)] = 1.0,
        faithful: Faithful = "code",
        init_epochs: PositiveFloat = 0.125,
    ) -> None:
        super().__init__()
        self.rate = rate
        self.p = p
        self.faithful = faithful
        self.init_epochs = init_epochs

    def build(self, probe: Signals) -> None:
        """Makes paraphraser and translator."""
        student, teacher = probe.pair("feature")
        width = max(1, round(teacher.values.shape[1] * self.rate))
        self.paraphraser = Paraphraser(teacher.values, width)
        self.translator = translator(student.values, width)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``reconstruction`` of the teacher's grid and ``factor``, whichever the stage wants."""
        terms = {}
        teacher = signals.feature("feature", "teacher").values
        if ctx.wants("reconstruction"):
            terms["reconstruction"] = hint_loss(self.paraphraser(teacher), teacher)
        if ctx.wants("factor"):
            with torch.no_grad():
                target = self.paraphraser.encoder(teacher)
            factor = self.translator(signals.feature("feature", "student").values)
            terms["factor"] = factor_loss(factor, target, p=self.p, faithful=self.faithful)
        return terms

    def stages(self) -> tuple[Stage, ...]:
        """Returns the paraphraser's stage and the student's."""
        return (
            Stage("paraphraser", self.init_epochs, ("reconstruction",), ("own.paraphraser",), lr=0.2, constant=True),
            Stage("distil", terms=("task", "factor"), trains=("student", "own.translator")),
        )
