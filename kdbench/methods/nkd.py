"""Normalised knowledge distillation.

Paper: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
with Normalized Loss and Customized Soft Labels", ICCV 2023: the NKD loss, whose gamma is the weight of ``non_target``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.nkd import nkd_non_target_loss, nkd_target_loss


class NKD(Method):
    """Soft labels of the true class and, made to sum to one on both sides, of the others.

    Args:
        temperature: Divides both logits of the classes but the true one.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})

    def __init__(self, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``target`` and ``non_target``."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "NKD")
        rows, weight = (student.rows(), teacher.rows(), student.labels()), student.row_weight()
        return {
            "target": nkd_target_loss(*rows, weight=weight),
            "non_target": nkd_non_target_loss(*rows, self.temperature, weight=weight),
        }
