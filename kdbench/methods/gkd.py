"""Distillation on what the student writes itself.

Papers:
    GKD: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem, "On-Policy Distillation of Language Models: Learning
        from Self-Generated Mistakes", ICLR 2024.
    OPD: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem, "On-Policy Distillation of Language Models: Learning
        from Self-Generated Mistakes", ICLR 2024, with the reverse KL on own words alone and no reward of later words.
    ImitKD: Lin, Wohlwend, Chen, Lei, "Autoregressive Knowledge Distillation through Imitation Learning", EMNLP 2020,
        with all words the student's own, as the release of DistiLLM runs it.
Deviations: the papers begin with a student that was fine-tuned before; here the first share of training is distillation
on the texts of the data set. No gradient comes through what was written, as in all of them. Which batches are the
student's own is drawn for each process. ImitKD has no replay buffer.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals, Stage
from kdbench.functional.jsd import jsd_loss
from kdbench.functional.kd import kd_loss

Share = Annotated[float, Field(ge=0, le=1)]
START, OWN = "start", "own words"


class GKD(Method):
    """Teacher and student read what the student has written behind the prompts of a batch, and are compared on it.

    Args:
        beta: Of the generalised Jensen-Shannon divergence; 0 and 1 are the forward and the reverse KL.
        share: Of the batches that the student writes; the others are those of the data set.
        sampling: Temperature at which the student writes.
        start: Share of training that is distillation on the texts of the data set.
        lr: Scales the learning rate behind that.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"generates"})

    def __init__(
        self,
        beta: Share = 0.5,
        share: Share = 0.5,
        sampling: PositiveFloat = 1.0,
        start: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        lr: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.beta, self.share, self.sampling = beta, share, sampling
        self.start, self.lr = start, lr

    def stages(self) -> tuple[Stage, ...]:
        """Returns distillation on the data set, and on own words."""
        own = Stage(OWN, 1 - self.start, terms=("own",), lr=self.lr)
        return (Stage(START, self.start, terms=("start",)), own) if self.start else (own,)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``start`` or ``own``."""
        terms = {}
        if ctx.wants("start"):
            student, teacher = signals.pair("logits")
            terms["start"] = kd_loss(student.rows(), teacher.rows(), 1.0, law=student.law, weight=student.row_weight())
        if ctx.wants("own"):
            own = torch.rand((), generator=ctx.generator("whose")).item() < self.share
            batch = signals.batch()
            read = (
                signals.generate("student", batch, ctx.generator("words"), temperature=self.sampling) if own else batch
            )
            student, teacher = signals.pair("logits", read)
            rows = student.rows(), teacher.rows(), self.beta
            terms["own"] = jsd_loss(*rows, law=student.law, weight=student.row_weight())
        return terms


class OPD(GKD):
    """The reverse KL on the student's own words."""


class ImitKD(GKD):
    """The forward KL on the student's own words."""
