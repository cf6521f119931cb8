"""Alpha-beta divergence.

Paper: Wang, Yang, Wang, Wang, Xu, Huang, "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
Distillation via α-β-Divergence", ICML 2025.
Deviations: alpha and beta default to the arguments of the authors' code; the paper's own settings differ by task, and
the released example script runs (0, 1), which is the reverse KL.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.abkd import alpha_beta_loss


class ABKD(Method):
    """A family of divergences from the forward to the reverse KL and beyond.

    Args:
        alpha: Power of the teacher.
        beta: Power of the student.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``abkd``."""
        student, teacher = signals.pair("logits")
        rows = student.rows(), teacher.rows(), self.alpha, self.beta, self.temperature
        return {"abkd": alpha_beta_loss(*rows, law=student.law, weight=student.row_weight())}
