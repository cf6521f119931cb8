"""Online distillation with a balance of forward and reverse divergence.

Paper: Amara, Sepahvand, Meyer, Gross, Clark, "BD-KD: Balancing the Divergences for Online Knowledge Distillation",
arXiv 2212.12965, 2022. Its text could not be had beyond abstract and summaries, so the fidelity is approximate. Read
there: the student learns by forward and reverse KL, weighted per sample by the gap of the entropies; the teacher, which
trains too, has the reverse KL as a regulariser; each holds the other fixed.
Chosen here: the two weights (their sum is that of the plain forward plus reverse KL), temperature 1, and ``KL(p_s ||
p_t)`` as "reverse" for the teacher too, which is what it learns by in mutual learning (``peer: forward`` is the other
reading).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdbench import PEER, STUDENT, Context, Logits, Method, Need, Role, Signals, Update
from kdbench.functional.bdkd import balanced_loss
from kdbench.functional.divergence import divergence
from kdbench.functional.numerics import weighted_mean


class BDKD(Method):
    """Student and peer train together on one forward; the student balances two divergences.

    Args:
        temperature: Divides all logits.
        major: Weight of the divergence that a sample's gap of entropies favours.
        minor: Weight of the other one.
        peer: Divergence that regularises the peer: ``reverse`` is ``KL(p_s || p_t)``, ``forward`` ``KL(p_t || p_s)``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, ("student", "peer"), each=True),)
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "peer": PEER}
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"

    def __init__(
        self,
        temperature: PositiveFloat = 1.0,
        major: PositiveFloat = 1.5,
        minor: NonNegativeFloat = 0.5,
        peer: Literal["reverse", "forward"] = "reverse",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.major = major
        self.minor = minor
        self.peer = peer

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``balanced`` of the student and ``balanced.peer`` of the peer."""
        student, peer = signals.pair("logits", roles=("student", "peer"))
        s, t, law, weight = student.rows(), peer.rows(), student.law, student.row_weight()
        balanced = balanced_loss(
            s, t.detach(), self.temperature, major=self.major, minor=self.minor, law=law, weight=weight
        )
        pair = (t, s.detach()) if self.peer == "reverse" else (s.detach(), t)
        rows = divergence(*pair, self.temperature, law)
        return {"balanced": balanced, "balanced.peer": self.temperature**2 * weighted_mean(rows, weight)}

    def updates(self) -> tuple[Update, ...]:
        """Steps both networks on one forward."""
        return (
            Update({"task": 1.0, "balanced": 1.0}, ("student",)),
            Update({"task.peer": 1.0, "balanced.peer": 1.0}, ("peer",)),
        )
