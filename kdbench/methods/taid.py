"""A teacher that begins as the student and becomes the teacher.

Paper: Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
Transfer in Language Models", ICLR 2025, as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.base.collectives import average
from kdbench.functional.taid import interpolated_loss, next_share
from kdbench.needs import State
from kdbench.signals import total

Share = Annotated[float, Field(ge=0, le=1)]


class TAID(Method):
    """The target lies between the student's own logits and the teacher's, ever nearer to these.

    Args:
        start: Share of the teacher at the beginning.
        end: Share at the end of training.
        alpha: How much faster it grows while the loss falls.
        decay: Of the average of how much the loss falls.
        temperature: Divides the logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    share: Tensor
    momentum: Tensor
    loss: Tensor
    last: Tensor

    def __init__(
        self,
        start: Share = 0.4,
        end: Share = 1.0,
        alpha: NonNegativeFloat = 5e-4,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.start, self.end, self.alpha, self.decay = start, end, alpha, decay
        self.temperature = temperature
        for name, value in (("share", start), ("momentum", 0.0), ("loss", torch.nan), ("last", torch.nan)):
            self.register_buffer(name, torch.tensor(value))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``taid``."""
        student, teacher = signals.pair("logits")
        rows = student.rows(), teacher.rows(), self.share, self.temperature
        loss = interpolated_loss(*rows, law=student.law, weight=student.row_weight())
        self.loss.copy_(total(average([loss.detach()])))
        return {"taid": loss}

    def after_step(self, signals: Signals, state: State) -> None:
        """Moves the share of the teacher on."""
        options = self.start, self.end, self.alpha, self.decay
        share, momentum = next_share(self.share, self.momentum, self.loss, self.last, state.progress, *options)
        self.share.copy_(share)
        self.momentum.copy_(momentum)
        self.last.copy_(self.loss)

    def readings(self) -> dict[str, float]:
        """Returns ``share``, of the teacher in the target."""
        return {"share": float(self.share)}
