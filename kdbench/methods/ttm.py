"""Transformed teacher matching.

Paper: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024: TTM, and WTTM with
``weighted``; beta is the term's weight. The exponents and weights of the paper are tuned for each pair of networks.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.ttm import ttm_loss


class TTM(Method):
    """The student's own prediction, without a temperature, matches a power of the teacher's.

    Args:
        exponent: Power of the teacher's probabilities, the inverse of a temperature.
        weighted: Multiplies each row by its power sum, which is larger for a smoother teacher (WTTM).
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    # A softmax head: one class a row.
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})

    def __init__(self, exponent: PositiveFloat = 0.1, weighted: bool = False) -> None:
        super().__init__()
        self.exponent = exponent
        self.weighted = weighted

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ttm``."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "TTM")
        rows = (student.rows(), teacher.rows(), self.exponent)
        return {"ttm": ttm_loss(*rows, weighted=self.weighted, weight=student.row_weight())}
