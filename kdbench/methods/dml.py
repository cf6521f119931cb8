"""Deep mutual learning: two networks teach each other from scratch.

Paper: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, eqs. 5 to 7 and algorithm 1:
``L_self = CE + KL(p_other || p_self)``, the other network fixed. Each network steps on fresh predictions of both.
Deviations: two networks, of which the peer has the architecture of the pair's teacher; it steps first, so that the
student learns from what it has just become. A temperature other than 1 is not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import PEER, STUDENT, Context, Logits, Method, Need, Role, Signals, Update, Values
from kdbench.functional.kd import kd_loss


class DML(Method):
    """Student and peer, both trained, each with the other's class scores, or predicted values, as targets.

    Args:
        temperature: Divides all logits; predicted values have none.
        shared: Both networks step on one forward in place of a fresh one each; half the cost.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", (Logits, Values), ("student", "peer"), each=True),)
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "peer": PEER}

    def __init__(self, temperature: PositiveFloat = 1.0, shared: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.shared = shared

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``mutual`` of the student and ``mutual.peer`` of the peer."""
        student, peer = signals.pair("logits", roles=("student", "peer"))
        s, p = student.rows(), peer.rows()
        law, weight = student.law, student.row_weight()
        return {
            "mutual": kd_loss(s, p.detach(), self.temperature, law=law, weight=weight),
            "mutual.peer": kd_loss(p, s.detach(), self.temperature, law=law, weight=weight),
        }

    def updates(self) -> tuple[Update, ...]:
        """Steps the peer, then the student."""
        return (
            Update({"task.peer": 1.0, "mutual.peer": 1.0}, ("peer",)),
            Update({"task": 1.0, "mutual": 1.0}, ("student",), group=0 if self.shared else 1),
        )
