"""Knowledge distillation of predictions; of class scores also standardised or with a learned temperature.

Papers:
    KD: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    LSKD: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024.
    CTKD: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
        global temperature.
Deviations: a sigmoid head gets the sum of its classes' binary divergences instead of a softmax one. Predicted values,
of which the papers do not speak, get the squared error, or where they come with a variance the KL of normal laws, both
without a temperature. The reversal of CTKD rises at every step instead of every epoch, over a share of training: 10 of
the authors' 240 epochs by default.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Context, KDBenchError, Logits, Method, Need, Signals, Values
from kdbench.functional.kd import adversarial_temperature, cosine_ramp, kd_loss


class KD(Method):
    """Softened class scores of the teacher as targets, or its predicted values.

    Args:
        temperature: Divides both logits (predicted values have none); ``adversarial``: ``T = low + span *
            sigmoid(theta)`` with a learned theta that ascends the loss (CTKD).
        standardize: z-scores both logits first (LSKD); categorical heads only.
        low: Lowest adversarial temperature.
        span: Width of the range of adversarial temperatures.
        start: First theta.
        ramp: Share of training over which the reversed gradient rises from nothing to all of it.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", (Logits, Values), each=True),)

    def __init__(
        self,
        temperature: PositiveFloat | Literal["adversarial"] = 4.0,
        standardize: bool = False,
        low: PositiveFloat = 1.0,
        span: PositiveFloat = 20.0,
        start: float = 1.0,
        ramp: Annotated[float, Field(ge=0, le=1)] = 0.0417,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.standardize = standardize
        self.low, self.span, self.ramp = low, span, ramp
        if temperature == "adversarial":
            self.theta = nn.Parameter(torch.tensor(float(start)))

    def build(self, probe: Signals) -> None:
        """Checks that predicted values are not asked for what only class scores have."""
        asked = self.standardize or self.temperature == "adversarial"
        if asked and isinstance(probe.feature("logits", "student"), Values):
            raise KDBenchError(
                "method.temperature=adversarial and method.standardize=true are of class scores, and this task gives "
                "predicted values: leave both out"
            )

    def current_temperature(self, progress: float) -> float | Tensor:
        """Returns the temperature at a share of training done; a learned one is on the graph of its theta."""
        if self.temperature == "adversarial":
            return adversarial_temperature(self.theta, cosine_ramp(progress, self.ramp), self.low, self.span)
        return self.temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd``."""
        student, teacher = signals.pair("logits")
        loss = kd_loss(
            student.rows(),
            teacher.rows(),
            self.current_temperature(ctx.state.progress),
            law=student.law,
            standardize=self.standardize,
            weight=student.row_weight(),
        )
        return {"kd": loss}


class CTKD(KD):
    """KD with a learned temperature: the recipe for class scores, which alone have one."""

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)


class LSKD(KD):
    """KD of z-scored logits: the recipe for tasks whose head is a softmax, one true class a row."""

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})
