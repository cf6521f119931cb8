"""Simple semi-supervised label distillation.

Paper: Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve
Backbones", 2021 (SSLD of PaddleClas). Equation: the Jensen-Shannon divergence between the student's and the teacher's
predictions at T = 1 on labelled and unlabelled samples alike, without any label; then a finetuning on the labelled
samples at a hundredth of the learning rate.
Deviations: PaddleClas' own JSDivLoss computes half of both KL divergences (``divergence: symmetric_kl``), its later
configurations a soft cross-entropy (``soft_ce``). The paper chooses the unlabelled samples before training, the surest
k of each predicted class, from a set without duplicates; with ``keep`` below 1 the first epoch shows all of them here,
and from the second on those that are not among the surest share count nothing. Labelled samples always stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench import Context, KDBenchError, Logits, Method, Need, Signals, Stage, State
from kdbench.functional.numerics import upcast, weighted_mean
from kdbench.functional.ssld import Divergence, label_free_divergence, surest

DISTIL, FINETUNE = "distil", "finetune"


class SSLD(Method):
    """Learns the teacher's predictions on all samples, then the labels of those that have one.

    Args:
        divergence: ``js``, ``symmetric_kl`` or ``soft_ce``.
        keep: Share of the unlabelled samples of each predicted class that stays after the first epoch.
        finetune: Share of the epochs that goes to the labelled samples; 0 leaves that stage out.
        finetune_lr: Scales the learning rate of that stage.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"sample_id"})
    over_batch: ClassVar[bool] = True
    confidence: Tensor
    predicted: Tensor

    def __init__(
        self,
        divergence: Divergence = "js",
        keep: Annotated[float, Field(gt=0, le=1)] = 1.0,
        finetune: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        finetune_lr: Annotated[float, Field(gt=0)] = 0.01,
    ) -> None:
        super().__init__()
        self.divergence: Divergence = divergence
        self.keep = keep
        self.finetune = finetune
        self.finetune_lr = finetune_lr
        self.stage = DISTIL
        self._kept: Tensor | None = None

    def stages(self) -> tuple[Stage, ...]:
        """Returns the distillation and the finetuning."""
        distil = Stage(DISTIL, 1 - self.finetune, terms=("ssld",))
        if not self.finetune:
            return (distil,)
        return distil, Stage(FINETUNE, self.finetune, terms=("task",), lr=self.finetune_lr)

    def build(self, probe: Signals) -> None:
        """Makes room for what the teacher says of each sample."""
        if self.keep < 1:
            scores = probe.feature("logits", "teacher").values
            if scores.dim() != 2:
                raise KDBenchError(
                    f"SSLD chooses among samples by one prediction each: found scores of shape {tuple(scores.shape)}; "
                    "set method.keep=1"
                )
            size = probe.cast.task.dataset().sizes["train"]
            self.register_buffer("confidence", torch.zeros(size))
            self.register_buffer("predicted", torch.full((size,), -1))

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Remembers the stage."""
        self.stage = stage.name

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ssld``."""
        student, teacher = signals.pair("logits")
        rows = label_free_divergence(student.rows(), teacher.rows(), self.divergence, student.law)
        if self.keep < 1 and ctx.state.epoch > 0:
            kept = self.kept()[signals.batch().ids]
            student = replace(student, weight=kept if student.weight is None else student.weight * kept)
        return {"ssld": weighted_mean(rows, student.row_weight())}

    def kept(self) -> Tensor:
        """Returns which samples count, ``(N,)``: all but the unlabelled ones that the teacher is less sure of."""
        if self._kept is None:
            kept = self.predicted < 0
            (seen,) = torch.nonzero(~kept, as_tuple=True)
            kept[seen] = surest(self.confidence[seen], self.predicted[seen], self.keep)
            self._kept = kept
        return self._kept

    def after_step(self, signals: Signals, state: State) -> None:
        """Writes down the teacher's confidence in the unlabelled samples of the first epoch."""
        batch = signals.batch()
        if self.keep == 1 or self.stage != DISTIL or state.epoch > 0 or batch.supervised is None:
            return
        logits = signals.feature("logits", "teacher")
        assert isinstance(logits, Logits)
        unlabelled = ~batch.supervised
        scores = upcast(logits.values[unlabelled])
        confidence, predicted = (scores.softmax(1) if logits.law == "categorical" else scores.sigmoid()).max(dim=1)
        self.confidence[batch.ids[unlabelled]] = confidence.to(self.confidence.dtype)
        self.predicted[batch.ids[unlabelled]] = predicted
