"""Distiller's MI-alpha: a lower bound of the mutual information of layers, to be raised.

Paper: He, Shi, Mueller, Zha, Li, Karypis, "Distiller: A Systematic Study of Model Distillation Methods in Natural
Language Processing", SustaiNLP 2021. Equation: the interpolated bound I_a of Poole et al. (ICML 2019) between layers of
student and teacher, maximised beside the loss of the class scores, with more of a for less variance and more bias.
Deviations: the paper's critics are transformers; here the critic is the cosine of two learned projections over a
temperature, of what stands for a text in each layer, and the baseline q is 1 or a small network on the teacher's.
Layers are mapped by ``strategy``; the paper also has the transport of all onto all. Weights and constants of the paper
could not be read.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Layer, Method, Need, Signals
from kdbench.functional.kd import kd_loss
from kdbench.functional.mi_alpha import mutual_information_loss
from kdbench.methods.layers import Layered, mapped, stands_for
from kdbench.signals import total


class MIAlpha(Method):
    """The student's layers say as much as they can of the teacher's.

    Args:
        alpha: Share of the batch's own mean in the bound; 1 is InfoNCE.
        critic: Temperature of the critic, which divides a cosine.
        width: Of both projections that the critic compares.
        baseline: ``one``, or ``learned`` from the teacher's layer.
        strategy: Which layers of the teacher: ``skip`` every few, or the ``last`` ones.
        temperature: Divides both logits.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    over_batch: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = (Layered.LOGITS, *Layered.LAYERS)

    def __init__(
        self,
        alpha: Annotated[float, Field(gt=0, le=1)] = 0.5,
        critic: PositiveFloat = 0.1,
        width: PositiveInt = 64,
        baseline: Literal["one", "learned"] = "one",
        strategy: Literal["skip", "last"] = "skip",
        temperature: PositiveFloat = 4.0,
    ) -> None:
        super().__init__()
        self.alpha, self.critic, self.width, self.baseline = alpha, critic, width, baseline
        self.strategy, self.temperature = strategy, temperature

    def pairs(self, signals: Signals) -> list[tuple[Layer, Layer]]:
        """Returns which layer learns from which."""
        return mapped(signals, "uniform" if self.strategy == "skip" else "last")

    def build(self, probe: Signals) -> None:
        """Makes the critics of each layer."""
        widths = [(s.values.shape[-1], t.values.shape[-1]) for s, t in self.pairs(probe)]
        self.students = nn.ModuleList(nn.Linear(s, self.width) for s, _ in widths)
        self.teachers = nn.ModuleList(nn.Linear(t, self.width) for _, t in widths)
        if self.baseline == "learned":
            self.baselines = nn.ModuleList(
                nn.Sequential(nn.Linear(t, self.width), nn.ReLU(), nn.Linear(self.width, 1)) for _, t in widths
            )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd`` and ``mi``, the mean over layers."""
        s, t = signals.pair("logits")
        losses = []
        for layer, (student, teacher) in enumerate(self.pairs(signals)):
            x, y = stands_for(student), stands_for(teacher)
            log_q = self.baselines[layer](y)[:, 0] if self.baseline == "learned" else None
            seen = self.students[layer](x), self.teachers[layer](y)
            losses.append(mutual_information_loss(*seen, self.alpha, self.critic, log_q))
        return {
            "kd": kd_loss(s.rows(), t.rows(), self.temperature, law=s.law, weight=s.row_weight()),
            "mi": total(losses) / len(losses),
        }
