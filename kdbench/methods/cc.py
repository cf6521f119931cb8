"""Correlation congruence.

Paper: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019: the squared distance between the
matrices of a Gaussian kernel between samples, in its Taylor series (gamma 0.4, order 2).
Deviations: ``faithful=code`` (default, weight 0.02) is the neighbour product that the authors gave to RepDistiller and
that every later table runs: another loss, which depends on the order of the batch. ``faithful=paper`` is the
correlation congruence alone; the paper runs it with weight 0.003 beside KD, whose term is not added here. Both
embeddings train, the teacher's too, as in RepDistiller, so that under ``code`` either side can shrink the loss. The
equations of ``paper`` were read from reimplementations (torchdistill, FaceX-Zoo).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Method, Need, Signals, Vector
from kdbench.functional.cc import correlation_congruence_loss, neighbour_product_loss
from kdbench.functional.numerics import Faithful


class CC(Method):
    """Embeds the pooled features of both and compares how the samples of a batch relate.

    Args:
        embed_dim: Width of both embeddings.
        faithful: ``code`` or ``paper``.
        gamma: Width of the paper's kernel.
        order: Highest power of the kernel's Taylor series.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("pooled", Vector),)
    over_batch: ClassVar[bool] = True

    def __init__(
        self,
        embed_dim: PositiveInt = 128,
        faithful: Faithful = "code",
        gamma: PositiveFloat = 0.4,
        order: PositiveInt = 2,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.faithful = faithful
        self.gamma = gamma
        self.order = order

    def build(self, probe: Signals) -> None:
        """Makes the embeddings."""
        student, teacher = probe.pair("pooled")
        self.embed_student = nn.Linear(student.values.shape[1], self.embed_dim)
        self.embed_teacher = nn.Linear(teacher.values.shape[1], self.embed_dim)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``cc``."""
        student, teacher = signals.pair("pooled")
        embedded = self.embed_student(student.values), self.embed_teacher(teacher.values)
        if self.faithful == "code":
            return {"cc": neighbour_product_loss(*embedded)}
        return {"cc": correlation_congruence_loss(*embedded, gamma=self.gamma, order=self.order)}
