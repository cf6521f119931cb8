"""Mixtures of samples and of their labels by one share.

Papers:
    Mixup: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    RegMixup: Pinto, Yang, Lim, Torr, Dokania, "Using Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out
        Distribution Robustness", NeurIPS 2022.
Of dense labels every position has the mixture of its two. Partial mixup (``portion``) is that of Choi, Jeon, Shukla,
Turaga, "Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study", WACV 2023, whose release mixes
each sample by a share of its own (``per=sample``) where that of mixup has one for the batch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench.augment.base import ORIGINAL, Mixing
from kdbench.needs import Views
from kdbench.signals import Context, Signals

MIXED = "mixed"


class Mixup(Mixing):
    """All of a sample is mixed with all of another one: ``own * x + (1 - own) * x'``, and so are their labels."""


class RegMixup(Mixing):
    """The batch stays as it is, and the student's loss on a mixture of it is added.

    Methods read the clean batch alone, so that nothing is taken from them.
    """

    removes: ClassVar[frozenset[str]] = frozenset()
    drawn: ClassVar[str] = MIXED

    def __init__(
        self,
        alpha: PositiveFloat = 10.0,
        per: Literal["sample", "batch"] = "batch",
        portion: Annotated[float, Field(ge=0, le=1)] = 1.0,
    ) -> None:
        super().__init__(alpha, per, portion)

    def views(self, views: Views, ctx: Context) -> Views:
        """Adds the view ``mixed`` for the student."""
        own = views["student"]
        batch = own.get("train", own["main"])
        mixed = self.change(batch, ctx.generator("augment"))
        return {**views, "student": {**own, MIXED: mixed, ORIGINAL: batch}}

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``regmixup``, the supervised loss of the mixture."""
        return {"regmixup": signals.supervised("student", MIXED)} if ctx.wants("regmixup") else {}
