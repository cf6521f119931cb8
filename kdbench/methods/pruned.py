"""Distillation on a pruned training set.

Paper: Ben-Baruch, Botach, Kviatkovsky, Aggarwal, Medioni, "Distilling the Knowledge in Data Pruning", ICML 2025.
Equation: ``L = (1 - a) CE + a T^2 KL``, with a teacher that was trained on all samples and a student that sees a share
of them (``data.keep``; the recipe keeps everything for the teacher).
Deviation: the paper's curve of the best ``a`` over the kept share could not be read; ``alpha: null`` takes
``1 - fraction / 2``, a rule of ours that rises as the share falls. The temperature is the usual one.
Both parts are one term, because ``a`` decides on the weight of the supervised loss too; ``weights.task`` is 0 lest it
counts twice.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.pruned import distillation_weight, pruned_loss


class Pruned(Method):
    """Leans on the teacher the more, the fewer samples the student sees.

    Args:
        alpha: Weight of the distillation part; None for the rule.
        fraction: Share of the training set that the student sees, for the rule.
        temperature: Divides both logits.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)

    def __init__(
        self,
        alpha: Annotated[float, Field(ge=0, le=1)] | None = None,
        fraction: Annotated[float, Field(gt=0, le=1)] = 1.0,
        temperature: PositiveFloat = 4.0,
    ) -> None:
        super().__init__()
        self.alpha = distillation_weight(fraction) if alpha is None else alpha
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``pruned``."""
        student, teacher = signals.pair("logits")
        loss = pruned_loss(
            signals.supervised("student"),
            student.rows(),
            teacher.rows(),
            self.alpha,
            self.temperature,
            law=student.law,
            weight=student.row_weight(),
        )
        return {"pruned": loss}
