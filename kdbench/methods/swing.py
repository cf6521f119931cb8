"""Swing distillation: the more private a word, the softer what is said of it.

Paper: Li, Wu, Dong, Wu, Bian, Xiong, "Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework", 2022
(arXiv 2212.08349). Equation: ``sum_i T_i^2 KL(q_i || p_i)`` with a temperature for each word that rises with how
probable it is that the word is private, and noise in the soft targets q.
Deviations: how the paper makes a temperature of that probability, and the law of its noise, could not be read: here the
temperature goes evenly from ``temperature`` to ``private``, and the noise, a share of the target's mass times that
probability, falls on all classes at random. The probability is the task's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.swing import private_loss


class Swing(Method):
    """Class scores at a temperature for each word, that of private ones high.

    Args:
        temperature: Of words that are not private.
        private: Of words that are.
        noise: What is added to the probabilities of a private word's target, in sum.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"private"})

    def __init__(
        self, temperature: PositiveFloat = 1.0, private: PositiveFloat = 16.0, noise: NonNegativeFloat = 0.0
    ) -> None:
        super().__init__()
        self.temperature, self.private, self.noise = temperature, private, noise

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``swing``."""
        student, teacher = signals.pair("logits")
        degree = signals.cast.task.ops()["private"](signals.batch())
        rows = student.rows()
        degree = degree.flatten() if student.mask is None else degree[student.mask]
        noise = None
        if self.noise:
            drawn = torch.rand(rows.shape, generator=ctx.generator("noise")).to(rows.device)
            noise = self.noise * degree[:, None] * drawn / drawn.sum(1, keepdim=True)
        temperature = self.temperature + degree * (self.private - self.temperature)
        return {"swing": private_loss(rows, teacher.rows(), temperature, noise, student.row_weight())}
