"""Soft labels of a graph network for a network without a graph.

Paper: Zhang, Liu, Sun, Shah, "Graph-less Neural Networks: Teaching Old MLPs New Tricks via Distillation", ICLR 2022,
eq. 1: ``lambda CE(labels) + (1 - lambda) KL(teacher || student)``, the latter over all nodes, labelled or not; lambda
is 0 in their experiments.
Deviation: a sigmoid head gets the sum of its classes' binary divergences instead of a softmax one.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Nodes, Signals
from kdbench.functional.kd import kd_loss


class GLNN(Method):
    """Class scores of the teacher, a network on a graph, as targets of all nodes.

    Args:
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True), Need("graph", Nodes, ("teacher",)))

    def __init__(self, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``glnn``."""
        student, teacher = signals.pair("logits")
        rows, weight = (student.rows(), teacher.rows()), student.row_weight()
        return {"glnn": kd_loss(*rows, self.temperature, law=student.law, weight=weight)}
