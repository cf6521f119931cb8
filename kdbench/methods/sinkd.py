"""Sinkhorn distance between batches of predictions.

Paper: Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", COLING 2024 (and TNNLS 2024).
Equations: ``L = (1 - a) CE + a KL + b S``, S the entropic transport cost with the L1 distance between softened
predictions, 20 alternations and eps 0.1; as in the released code a sum over the batch, so that its weight goes with the
batch size (0.8 * 0.001 for 16 rows), and a KL that is not multiplied by T^2.
Deviations: one constant temperature, where the released code lowers that of the KL to 1 over training; its training
loop applies the loss only where the option is spelt ``saliency``, here it is always on; ``debiased`` and ``max_rows``
are ours. The transport plan has no per-sample form, so weights of rows count in the KL alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import weighted_mean
from kdbench.functional.sinkd import sinkhorn_loss


class SinKD(Method):
    """Moves the batch of the student's distributions onto the teacher's.

    Args:
        temperature: Divides both logits.
        eps: Strength of the entropic regularisation.
        iterations: Alternations of row and column normalisation.
        debiased: Takes the self costs away, so that the minimum is at the teacher.
        max_rows: Rows of the transport plan at most, drawn at random where a batch has more.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})
    over_batch: ClassVar[bool] = True

    def __init__(
        self,
        temperature: PositiveFloat = 2.0,
        eps: PositiveFloat = 0.1,
        iterations: PositiveInt = 20,
        debiased: bool = False,
        max_rows: PositiveInt = 1024,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.eps = eps
        self.iterations = iterations
        self.debiased = debiased
        self.max_rows = max_rows

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd`` and ``sinkhorn``."""
        s, t = signals.pair("logits")
        check_categorical(s.law, "SinKD")
        student, teacher = s.rows(), t.rows()
        kd = weighted_mean(categorical_kl(student, teacher, self.temperature), s.row_weight())
        if len(student) > self.max_rows:
            order = torch.randperm(len(student), generator=ctx.generator("sinkd"))
            chosen = order[: self.max_rows].to(student.device)
            student, teacher = student[chosen], teacher[chosen]
        sinkhorn = sinkhorn_loss(
            student,
            teacher,
            self.temperature,
            eps=self.eps,
            iterations=self.iterations,
            debiased=self.debiased,
        )
        return {"kd": kd, "sinkhorn": sinkhorn}
