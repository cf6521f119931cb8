"""Probabilistic knowledge transfer.

Paper: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, with the
cosine kernel.
Deviation: ``faithful=code`` (default, weight 30000) is the authors' code, which all later tables run: a mean over all
pairs, a sample with itself included. ``faithful=paper`` sums over the other samples, on another scale; the paper's own
text could not be read here, so this form has no second source.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench import Context, Method, Need, Signals, Vector
from kdbench.functional.numerics import Faithful
from kdbench.functional.pkt import pkt_loss


class PKT(Method):
    """Compares which samples of a batch are neighbours to student and teacher; widths may differ.

    Args:
        faithful: ``code`` or ``paper``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("pooled", Vector),)
    over_batch: ClassVar[bool] = True

    def __init__(self, faithful: Faithful = "code") -> None:
        super().__init__()
        self.faithful = faithful

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``pkt``."""
        student, teacher = signals.pair("pooled")
        return {"pkt": pkt_loss(student.values, teacher.values, faithful=self.faithful)}
