"""DistilBERT: class scores, and the angle of what they are read from.

Paper: Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
EMC2 Workshop of NeurIPS 2019. Equation: ``5 T^2 KL(T = 2) + 2 CE + 1 cosine(hidden states)``, weights as released
(huggingface/transformers-research-projects). The cosine is of the last hidden states at all places that count.
Deviations: it is of any task with class scores, while the paper's CE is of masked words. A learned projection stands
where widths differ; the paper's student has the teacher's, and begins with every other one of its layers, which
``student.init_from`` can give.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals, Tokens
from kdbench.functional.distilbert import hidden_cosine_loss
from kdbench.functional.kd import kd_loss
from kdbench.methods.layers import projection


class DistilBERT(Method):
    """Softened class scores, and last hidden states that point the same way.

    Args:
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits), Need("hidden", Tokens))

    def __init__(self, temperature: PositiveFloat = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def build(self, probe: Signals) -> None:
        """Makes the projection, where widths differ."""
        student, teacher = probe.pair("hidden")
        self.project = projection(student.values, teacher.values)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd`` and ``cosine``."""
        s, t = signals.pair("logits")
        student, teacher = signals.pair("hidden")
        return {
            "kd": kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight()),
            "cosine": hidden_cosine_loss(self.project(student.rows()), teacher.rows()),
        }
