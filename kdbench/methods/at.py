"""Attention transfer.

Paper: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2 (activation-based).
Deviation: ``faithful=code`` (default, weight 1000) is the mean of squares that the authors' code and all later tables
use; ``faithful=paper`` is the norm of eq. 2.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.at import attention_transfer_loss
from kdbench.functional.numerics import Faithful
from kdbench.methods.blocks import levels
from kdbench.signals import total


class AT(Method):
    """Compares where student and teacher look, at every grid that both give.

    Args:
        p: Exponent of the attention map, at least 1.
        faithful: ``code`` or ``paper``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)

    def __init__(self, p: Annotated[float, Field(ge=1)] = 2.0, faithful: Faithful = "code") -> None:
        super().__init__()
        self.p = p
        self.faithful = faithful

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``at``, the sum over grids."""
        losses = [
            attention_transfer_loss(s.values, t.values, power=self.p, faithful=self.faithful)
            for s, t in levels(signals, "stages")
        ]
        return {"at": total(losses)}
