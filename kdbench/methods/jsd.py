"""Generalised Jensen-Shannon divergence.

Paper: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem, "On-Policy Distillation of Language Models: Learning
from Self-Generated Mistakes", ICLR 2024: its divergence, on the texts of the data set.
Deviations: beta 0 and 1 are the two KL divergences, as in released code; ``normalise`` is not of the paper.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.jsd import jsd_loss


class JSD(Method):
    """Both laws are held against their mixture.

    Args:
        beta: Share of the teacher in the mixture.
        normalise: Divides by ``beta (1 - beta)``: else a sweep over beta compares sizes of steps.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)

    def __init__(
        self, beta: Annotated[float, Field(ge=0, le=1)] = 0.5, normalise: bool = False, temperature: PositiveFloat = 1.0
    ) -> None:
        super().__init__()
        self.beta, self.normalise, self.temperature = beta, normalise, temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``jsd``."""
        student, teacher = signals.pair("logits")
        rows = student.rows(), teacher.rows(), self.beta, self.temperature
        options = {"law": student.law, "weight": student.row_weight()}
        return {"jsd": jsd_loss(*rows, normalise=self.normalise, **options)}
