"""Hints from an intermediate feature.

Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3. The hint is a layer from the middle: which
one, the pair says (``published.fitnet``; layer 2 in the released code of Tian et al.).
The regressor is that of RepDistiller, mdistiller and the SimKD tables: convolution, batch normalisation, ReLU, with a
stride where sizes differ. Grids that it cannot bring to one size are pooled to the smaller one. Tokens with a grid are
read as one; of other tokens, points, nodes and vectors the rows are compared, each a grid of one cell.
Deviation: hint and task are trained together, as the later literature does, instead of one after the other.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kdbench import Context, Feature, Grid, KDBenchError, Method, Need, Nodes, Points, Signals, Tokens, Vector
from kdbench.functional.fitnet import hint_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import conv, conv_regressor


class FitNet(Method):
    """A regressor brings the student's feature to the teacher's width and size, where they are compared.

    Args:
        regressor: ``conv_bn_relu``, or ``conv1x1``: a bare 1x1 convolution, two sizes pooled to the smaller one.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", (Grid, Tokens, Points, Nodes, Vector)),)

    def __init__(self, regressor: Literal["conv_bn_relu", "conv1x1"] = "conv_bn_relu") -> None:
        super().__init__()
        self.kind = regressor

    def build(self, probe: Signals) -> None:
        """Makes the regressor."""
        student, teacher = comparable(*probe.pair("feature"))
        self.regressor = (
            conv_regressor(student, teacher)
            if self.kind == "conv_bn_relu"
            else conv(student.dim() - 2, student.shape[1], teacher.shape[1], bias=True)
        )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``hint``."""
        student, teacher = comparable(*signals.pair("feature"))
        return {"hint": hint_loss(*pool_to_smaller(self.regressor(student), teacher, "fitnet"))}


def comparable(student: Feature, teacher: Feature) -> tuple[Tensor, Tensor]:
    """Returns two features as grids ``(B, C, *space)`` where both are some, else their rows as ``(N, C, 1)``.

    Raises:
        KDBenchError: They are of two kinds that have no form in common.
    """
    grids = [f.as_grid() if isinstance(f, Tokens) else f for f in (student, teacher)]
    if all(isinstance(f, Grid) for f in grids):
        return grids[0].values, grids[1].values
    if type(student) is not type(teacher):
        raise KDBenchError(
            f"fitnet: the student's feature is a {student.signature()} and the teacher's a {teacher.signature()}, "
            "expected the same kind of both: choose another by method.bind.feature"
        )
    return student.rows()[:, :, None], teacher.rows()[:, :, None]
