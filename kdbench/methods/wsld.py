"""Weighted soft labels.

Paper: Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
Tradeoff Perspective", ICLR 2021: soft cross-entropy weighted by ``1 - exp(-CE_s / CE_t)``; alpha is the term's weight.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.wsld import wsld_loss


class WSLD(Method):
    """Soft labels that fade on rows where the student is already better than its teacher.

    Args:
        temperature: Divides both logits of the soft labels; the row's weight is at temperature one.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})

    def __init__(self, temperature: PositiveFloat = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``wsld``."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "WSLD")
        rows = (student.rows(), teacher.rows(), student.labels(), self.temperature)
        return {"wsld": wsld_loss(*rows, weight=student.row_weight())}
