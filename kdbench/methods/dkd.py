"""Decoupled knowledge distillation.

Paper: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, eq. 5-7: ``alpha TCKD + beta NCKD``,
alpha and beta being the weights of the two terms.
Deviations: the warm-up of the authors' code is that of the weights and rises at every step instead of every epoch. The
true class is left out of a softmax instead of being lowered by 1000, which gives the same numbers.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.dkd import nckd_loss, tckd_loss


class DKD(Method):
    """How sure the teacher is of the true class, and apart from it how it ranks the others.

    Args:
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})

    def __init__(self, temperature: PositiveFloat = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``tckd`` and ``nckd``."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "DKD")
        rows, weight = (student.rows(), teacher.rows(), student.labels(), self.temperature), student.row_weight()
        return {"tckd": tckd_loss(*rows, weight=weight), "nckd": nckd_loss(*rows, weight=weight)}
