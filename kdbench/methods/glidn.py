"""Distillation between the local and the global context of people and objects.

Paper: Almushyti, Li, "Distillation of Human-Object Interaction Contexts for Action Recognition", CAVW 2022 (arXiv
2112.09448). Of its text only the abstract could be had, so the fidelity is approximate. Read
there: people and objects are nodes; graphs of each step (local) and of the whole video (global) are learned with graph
attention; the knowledge of each is distilled to its counterpart.
Chosen here: a softened KL divergence of the class scores of every head (the sum of binary ones where a clip has several
labels), and the squared error of nodes, adapted linearly, relative to the size of the teacher's; step by step, as both
networks have the same nodes. Which context teaches is the pair's (``context_lgru``, ``context_l``: the global one;
``context_l2g``: the local one). ``glidn_mutual`` trains both from scratch, each with the other's class scores held
fixed (deep mutual learning, Zhang et al., CVPR 2018); then the mean of both is scored beside them, as ``both``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import PEER, STUDENT, Artifact, Context, Logits, Method, Need, Nodes, Role, Signals, Update
from kdbench.functional.glidn import relative_error
from kdbench.functional.kd import kd_loss
from kdbench.roles.sources import Ensemble
from kdbench.signals import total


class GLIDN(Method):
    """Class scores and nodes of one context teach the other.

    Args:
        temperature: Divides all logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, many=True), Need("context", Nodes))
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    other: ClassVar[str] = "teacher"

    def __init__(self, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def build(self, probe: Signals) -> None:
        """Makes the adapter of the student's nodes."""
        student, teacher = (probe.feature("context", role).values.shape[1] for role in ("student", self.other))
        self.adapter = nn.Linear(student, teacher)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``logit``, the sum over heads, and ``node``."""
        student, teacher = signals.pair("context")
        return {
            "logit": self._logits(signals, "student", "teacher"),
            "node": relative_error(self.adapter(student.rows()), teacher.rows()),
        }

    def _logits(self, signals: Signals, learner: str, guide: str) -> Tensor:
        pairs = zip(signals.features("logits", learner), signals.features("logits", guide), strict=True)
        return total(
            kd_loss(s.rows(), t.rows().detach(), self.temperature, law=s.law, weight=s.row_weight())
            for s, t in pairs
            if isinstance(s, Logits)
        )


class GLIDNMutual(GLIDN):
    """Both contexts learn on one forward, each with the other's class scores as targets."""

    needs: ClassVar[tuple[Need, ...]] = (
        Need("logits", Logits, ("student", "peer"), many=True),
        Need("context", Nodes, ("student", "peer")),
    )
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "peer": PEER}
    other: ClassVar[str] = "peer"

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``logit`` and ``node`` of the student and ``logit.peer`` of the peer."""
        student, peer = signals.pair("context", roles=("student", "peer"))
        return {
            "logit": self._logits(signals, "student", "peer"),
            "logit.peer": self._logits(signals, "peer", "student"),
            "node": relative_error(self.adapter(student.rows()), peer.rows().detach()),
        }

    def updates(self) -> tuple[Update, ...]:
        """Steps both networks on one forward."""
        return (
            Update({"task": 1.0, "logit": 1.0, "node": 1.0}, ("student", "own")),
            Update({"task.peer": 1.0, "logit.peer": 1.0}, ("peer",)),
        )

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Adds ``both``, the mean of the class scores."""
        return super().artifacts(models) | {"both": Artifact(Ensemble([models["student"], models["peer"]]))}
