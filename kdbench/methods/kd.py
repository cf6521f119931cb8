"""Knowledge distillation of predictions; of class scores also standardised or with a learned temperature.

Papers:
    KD: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    LSKD: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024.
    CTKD: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
        global temperature.
    MIXKD: Choi, Jeon, Shukla, Turaga, "Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
        WACV 2023, as in the authors' code.
Of dense prediction this is pixel-wise KD (Liu et al., CVPR 2019): the mean over positions of their KL, at the size of
the class scores; there the published temperature and weights are 1, which a pair says (``published.kd``).
Deviations: rows that are not distilled, such as positions of the ignored label, have no part, where released code for
segmentation counts all positions; a sigmoid head gets the sum of its classes' binary divergences instead of a softmax
one. Predicted values, of which the papers do not speak, get the squared error, or where they come with a variance the
KL of normal laws, both without a temperature. The reversal of CTKD rises at every step instead of every epoch, over a
share of training: 10 of the authors' 240 epochs by default.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Context, KDBenchError, Logits, Method, Need, Signals, Values
from kdbench.functional.kd import adversarial_temperature, cosine_ramp, kd_loss, std_rescale
from kdbench.signals import total


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
        rescale: ``std`` divides the logits of each row by their standard deviation, an adaptive temperature beside the
            other (MIX-KD), and adds the term ``rescaled``, the supervised loss on such logits, to stand for ``task``.
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
        rescale: Literal["std"] | None = None,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.temperature = temperature
        self.standardize = standardize
        self.low, self.span, self.ramp = low, span, ramp
        if temperature == "adversarial":
            self.theta = nn.Parameter(torch.tensor(float(start)))

    def build(self, probe: Signals) -> None:
        """Checks that predictions are not asked for what others have."""
        asked = self.standardize or self.temperature == "adversarial"
        if asked and isinstance(probe.feature("logits", "student"), Values):
            raise KDBenchError(
                "method.temperature=adversarial and method.standardize=true are of class scores, and this task gives "
                "predicted values: leave both out"
            )
        if self.rescale:
            logits, task = probe.feature("logits", "student"), probe.cast.task
            if "class_scores" not in task.capabilities or getattr(logits, "law", "") != "categorical":
                raise KDBenchError(
                    f"method.rescale={self.rescale} is of scores of a softmax that the supervised loss is given anew, "
                    "for which this task lacks the capability class_scores: leave it out"
                )
            self.with_scores = task.ops()["with_scores"]

    def current_temperature(self, progress: float) -> float | Tensor:
        """Returns the temperature at a share of training done; a learned one is on the graph of its theta."""
        if self.temperature == "adversarial":
            return adversarial_temperature(self.theta, cosine_ramp(progress, self.ramp), self.low, self.span)
        return self.temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd``, and with ``rescale`` also ``rescaled``."""
        student, teacher = signals.pair("logits")
        terms: dict[str, Tensor] = {}
        if self.rescale:
            student, teacher = (replace(f, values=std_rescale(f.values, f.class_dim)) for f in (student, teacher))
            if ctx.wants("rescaled"):
                terms["rescaled"] = self._supervised(signals, student.values)
        loss = kd_loss(
            student.rows(),
            teacher.rows(),
            self.current_temperature(ctx.state.progress),
            law=student.law,
            standardize=self.standardize,
            weight=student.row_weight(),
        )
        return {"kd": loss, **terms}

    def _supervised(self, signals: Signals, scores: Tensor) -> Tensor:
        """Returns the student's supervised loss with other class scores."""
        task, answer = signals.cast.task, signals.answer("student")
        losses = task.loss(signals.cast.model("student"), self.with_scores(answer.outputs, scores), answer.batch)
        weights = task.loss_weights()
        return total(weights.get(name, 1.0) * value for name, value in losses.items())


class CTKD(KD):
    """KD with a learned temperature: the recipe for class scores, which alone have one."""

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)


class LSKD(KD):
    """KD of z-scored logits: the recipe for tasks whose head is a softmax, one true class a row."""

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})


class MIXKD(KD):
    """KD of logits divided by their standard deviation: the recipe of MIX-KD, which trains on mixtures.

    Both terms read rescaled logits; those that are scored are as they come, so that accuracy is that of the authors'
    code, while calibration, which they take of rescaled ones, is not.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"class_scores"})
