"""Graphs on logits, for models of other vocabularies.

Paper: Wang, Zhang, Zhang, Xu, Zheng, Wang, Yang, "InfiGFusion: Graph-on-Logits Distillation via Efficient
Gromov-Wasserstein for Model Fusion", NeurIPS 2025. The top logits of every row, their outer products summed over a
sample, and the distance of the two graphs by sorted sums of edges, beside the universal logit loss and the
cross-entropy of the true words.
Deviations: the paper's equations could not be read: how many logits count (``top``), the weights, the feature of a node
(the mean of its edges) and the square are ours, and logits are centred, as they are known up to a constant. One teacher
in place of several.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.gld import graph_logits_loss
from kdbench.functional.uld import universal_loss
from kdbench.methods.uld import aligned


class GLD(Method):
    """Compares which classes are likely together over the rows of a sample, whatever they are called.

    Args:
        top: Logits of a row that count.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    renames: ClassVar[bool] = True

    def __init__(self, top: PositiveInt = 10) -> None:
        super().__init__()
        self.top = top

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``uld`` and ``gld``."""
        student, teacher = signals.pair("logits")
        rows, others, weight = aligned(student, teacher)
        owners = student.sample(), teacher.sample()
        graph = graph_logits_loss(student.rows(), teacher.rows(), *owners, len(student.values), self.top)
        return {"uld": universal_loss(rows, others, law=student.law, weight=weight), "gld": graph}
