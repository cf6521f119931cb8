"""Reverse KL.

Paper: Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024: its divergence,
on the texts of the data set, without what else is in it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals, Values
from kdbench.functional.rkl import reverse_kl_loss


class RKL(Method):
    """The student's predictions are held against the teacher's, instead of the other way round.

    Args:
        temperature: Divides both logits; predicted values have none.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", (Logits, Values), each=True),)

    def __init__(self, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``rkl``."""
        student, teacher = signals.pair("logits")
        rows = student.rows(), teacher.rows(), self.temperature
        return {"rkl": reverse_kl_loss(*rows, law=student.law, weight=student.row_weight())}
