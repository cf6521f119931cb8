"""Patient knowledge distillation: hidden states of several layers, by their direction.

Paper: Sun, Cheng, Gan, Liu, "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019. Equation:
``(1 - a) CE + a T^2 KL + b L_PT``, L_PT the squared distance between hidden states of unit length at the class token,
summed over the layers of the student but its last. PKD-Skip takes the teacher's layers 2, 4, 6, 8, 10 of 12 for a
student of six, PKD-Last 7 to 11; a is 0.2 to 0.7, b 10 to 1,000, T 5 to 20.
Deviations: ``faithful=code`` (default) is the authors' mean over layers and width (intersun/PKD-for-BERT-Model-
Compression), which b is of. A learned projection stands where widths differ, which the paper excludes. A student of one
layer learns from it, its last. Where no place stands for the whole text, as in language models, every place counts. The
authors' KL is divided by the number of classes; ours is not.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Layer, Method, Need, Signals
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import Faithful
from kdbench.functional.patient_kd import patience_loss
from kdbench.methods.layers import Layered, mapped, projection
from kdbench.signals import total


class PatientKD(Method):
    """The student's layers follow the teacher's at the place that stands for the text.

    Args:
        strategy: Which layers of the teacher: ``skip`` every few, or the ``last`` ones.
        faithful: ``code`` is a mean over layers and width, ``paper`` a sum.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Layered.LOGITS, *Layered.LAYERS)

    def __init__(
        self,
        strategy: Literal["skip", "last"] = "skip",
        faithful: Faithful = "code",
        temperature: PositiveFloat = 4.0,
    ) -> None:
        super().__init__()
        self.strategy, self.faithful, self.temperature = strategy, faithful, temperature

    def pairs(self, signals: Signals) -> list[tuple[Layer, Layer]]:
        """Returns which layer learns from which."""
        return mapped(signals, "uniform" if self.strategy == "skip" else "last", final=False)

    def build(self, probe: Signals) -> None:
        """Makes a projection for each layer, where widths differ."""
        self.project = nn.ModuleList(projection(s.values, t.values) for s, t in self.pairs(probe))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd`` and ``patience``."""
        s, t = signals.pair("logits")
        losses = []
        pairs = self.pairs(signals)
        for (student, teacher), project in zip(pairs, self.project, strict=True):
            rows = [f.values[:, 0] if f.prefix else f.rows() for f in (student, teacher)]
            losses.append(patience_loss(project(rows[0]), rows[1], faithful=self.faithful))
        return {
            "kd": kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight()),
            "patience": total(losses) / (len(losses) if self.faithful == "code" else 1),
        }
