"""MiniLLM: the reverse KL of whole texts, on what the student writes.

Paper: Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024. Equation: the
gradient of the reverse KL of texts is that of the reverse KL of each next word, and minus the mean reward
``log p(y) - log q(y)`` of all later words times the gradient of ``log q`` of the word that was drawn; beside it a loss
on the texts of the data set, in the release half the words' and half the forward KL to the teacher.
Deviations: texts are drawn from the student alone, where the paper draws from 0.8 of it and 0.2 of the teacher and
corrects by their ratio. Each is learned from once; the release takes four clipped steps (PPO) on 256 of them, whose
clipping cannot act in the first. The gradient is a mean over words, the paper's a sum over those of a text. The paper
begins with a fine-tuned student; here the first share of training is distillation on the texts of the data set.
``faithful=code`` has the rewards of the release, another estimate: the word's own among them, discounted and whitened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals, Stage
from kdbench.functional.kd import kd_loss
from kdbench.functional.minillm import GAMMA, later_rewards, long_term_loss
from kdbench.functional.numerics import Faithful, upcast
from kdbench.functional.rkl import reverse_kl_loss
from kdbench.methods.gkd import OWN, START


class MiniLLM(Method):
    """The student learns from its own words what the teacher makes of them and of what they lead to.

    Args:
        faithful: ``paper`` or ``code``: what a word earns by the words that follow.
        gamma: Discount of later words, of ``code`` alone.
        sampling: Temperature at which the student writes.
        start: Share of training that is distillation on the texts of the data set.
        lr: Scales the learning rate behind that.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"generates", "single_label"})

    def __init__(
        self,
        faithful: Faithful = "paper",
        gamma: Annotated[float, Field(ge=0, le=1)] = GAMMA,
        sampling: PositiveFloat = 1.0,
        start: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        lr: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.faithful, self.gamma, self.sampling = faithful, gamma, sampling
        self.start, self.lr = start, lr

    def stages(self) -> tuple[Stage, ...]:
        """Returns distillation on the data set, and on own words beside it."""
        own = Stage(OWN, 1 - self.start, terms=("task", "kd", "single", "long"), lr=self.lr)
        return (Stage(START, self.start, terms=("start",)), own) if self.start else (own,)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``start``, or ``kd`` on the data set and ``single`` and ``long`` on own words."""
        terms: dict[str, Tensor] = {}
        on_data = [name for name in ("start", "kd") if ctx.wants(name)]
        if on_data:
            student, teacher = signals.pair("logits")
            loss = kd_loss(student.rows(), teacher.rows(), 1.0, law=student.law, weight=student.row_weight())
            terms |= dict.fromkeys(on_data, loss)
        if ctx.wants("single") or ctx.wants("long"):
            written = signals.generate("student", signals.batch(), ctx.generator("words"), temperature=self.sampling)
            # All of it is what the student said: its own words are the target.
            student, teacher = signals.pair("logits", replace(written, supervised=None))
            terms["single"] = reverse_kl_loss(student.rows(), teacher.rows(), law=student.law)
            terms["long"] = self.long(student, teacher)
        return terms

    def long(self, student: Logits, teacher: Logits) -> Tensor:
        """Returns the loss of the words that were drawn, by what follows them."""
        assert student.target is not None
        said = student.target.clamp(min=0)[..., None]
        log_q, log_p = (upcast(f.values).log_softmax(-1).gather(-1, said)[..., 0] for f in (student, teacher))
        mask = student.target >= 0 if student.mask is None else student.mask
        earned = later_rewards(log_p - log_q, mask, faithful=self.faithful, gamma=self.gamma)
        return long_term_loss(log_q, earned, mask)
