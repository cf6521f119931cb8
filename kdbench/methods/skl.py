"""Skewed KL, forward or reverse.

Paper: Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024: its
divergences, on the texts of the data set.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.skl import skew_kl_loss, skew_reverse_kl_loss


class SKL(Method):
    """The teacher is held against the student mixed with some of the teacher.

    Args:
        skew: Share of the law that is held against the other in the mixture.
        reverse: The student is held against the teacher mixed with some of the student (SRKL).
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)

    def __init__(
        self, skew: Annotated[float, Field(ge=0, lt=1)] = 0.1, reverse: bool = False, temperature: PositiveFloat = 1.0
    ) -> None:
        super().__init__()
        self.skew, self.temperature = skew, temperature
        self.loss = skew_reverse_kl_loss if reverse else skew_kl_loss

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``skl``."""
        student, teacher = signals.pair("logits")
        rows = student.rows(), teacher.rows(), self.skew, self.temperature
        return {"skl": self.loss(*rows, law=student.law, weight=student.row_weight())}
