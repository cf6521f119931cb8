"""Knowledge distillation of class scores.

Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
Deviation: a sigmoid head gets the sum of its classes' binary divergences instead of a softmax one.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench.features import Logits
from kdbench.functional.kd import kd_loss
from kdbench.plugin import Method, Need
from kdbench.signals import Context, Signals


class KD(Method):
    """Softened class scores of the teacher as targets.

    Args:
        temperature: Divides both logits.
        standardize: z-scores both logits first (LSKD, CVPR 2024); categorical heads only.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)

    def __init__(self, temperature: PositiveFloat = 4.0, standardize: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.standardize = standardize

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd``."""
        student, teacher = signals.pair("logits")
        loss = kd_loss(
            student.rows(),
            teacher.rows(),
            self.temperature,
            law=student.law,
            standardize=self.standardize,
            weight=student.row_weight(),
        )
        return {"kd": loss}
