"""A hypergraph network for a network without a hypergraph, also by what predictions have in common over hyperedges.

Paper: Feng, Liu, Ying, Gao, "LightHGNN: Distilling Hypergraph Neural Networks into MLPs for 100x Faster Inference",
ICLR 2024: soft labels of all nodes at temperature 1, without any label (LightHGNN); and the mean prediction over
hyperedges, each kept with the probability by which noise on the features leaves the entropy of the teacher over it as
it is (LightHGNN+).
The released code takes probabilities for their logarithms in both divergences (``faithful: code``), by which the
student learns a softmax of the teacher's probabilities. ``hyperedges: random`` is a control of ours: as many of them,
whichever.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdbench import Context, KDBenchError, Logits, Method, Need, Signals, Stage
from kdbench.functional.kd import kd_loss
from kdbench.functional.lighthgnn import high_order_loss, reliability
from kdbench.functional.numerics import Faithful, safe_mean, upcast


class LightHGNN(Method):
    """Learns the teacher's predictions of nodes, and their means over hyperedges.

    Args:
        hyperedges: Which hyperedges count in a step: ``reliable`` ones, or as many at ``random``.
        faithful: ``paper`` or ``code``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"hyperedges", "node_scores"})
    over_batch: ClassVar[bool] = True
    reliability: Tensor

    def __init__(self, hyperedges: Literal["reliable", "random"] = "reliable", faithful: Faithful = "paper") -> None:
        super().__init__()
        self.hyperedges = hyperedges
        self.faithful: Faithful = faithful

    def build(self, probe: Signals) -> None:
        """Makes room for the reliability of each hyperedge."""
        members: Tensor = probe.cast.task.ops()["hyperedges"](probe.batch())
        count = int(members[1].max()) + 1 if members.shape[1] else 0
        self.register_buffer("reliability", torch.ones(count, device=members.device))

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Asks the teacher about features with noise."""
        ops, batch = probe.cast.task.ops(), probe.batch("teacher")
        draw = torch.Generator().manual_seed(probe.cast.seed)
        clean, noised = (
            probe.feature("logits", "teacher", view).values for view in ("main", ops["noised"](batch, draw))
        )
        self.reliability.copy_(reliability(clean, noised, ops["hyperedges"](batch)))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``soft`` and ``high_order``."""
        student, teacher = signals.pair("logits")
        terms: dict[str, Tensor] = {}
        if ctx.wants("soft"):
            terms["soft"] = self._soft(student, teacher)
        if ctx.wants("high_order"):
            members: Tensor = signals.cast.task.ops()["hyperedges"](signals.batch())
            if members.shape[1] and int(members[1].max()) >= len(self.reliability):
                raise KDBenchError(
                    f"lighthgnn: a batch has {int(members[1].max()) + 1} hyperedges, the first one had "
                    f"{len(self.reliability)}: it takes one hypergraph that is seen whole"
                )
            share = self.reliability
            if self.hyperedges == "random":
                share = share.mean().expand_as(share)
            kept = torch.bernoulli(share.cpu(), generator=ctx.generator("lighthgnn")).bool().to(share.device)
            terms["high_order"] = high_order_loss(student.values, teacher.values, members, kept, self.faithful)
        return terms

    def _soft(self, student: Logits, teacher: Logits) -> Tensor:
        if self.faithful == "paper":
            return kd_loss(student.rows(), teacher.rows(), 1.0, law=student.law, weight=student.row_weight())
        law = upcast(teacher.rows()).softmax(1)
        return safe_mean((law.exp() * (law - upcast(student.rows()).log_softmax(1))).sum(1))
