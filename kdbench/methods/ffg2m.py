"""Low- and high-frequency knowledge of a graph network for a network without a graph.

Paper: Wu, Lin, Huang, Fan, Li, "Extracting Low-/High-Frequency Knowledge from Graph Neural Networks and Injecting it
into MLPs", AAAI 2023: ``lambda CE(labels) + (1 - lambda) (L_low + L_high)``, as read in the authors' released code
(LirongWu/FF-G2M), whose lambda is 0 to 0.4 by data set.
Deviation: the supervised weight is 0 by default. Where neighbours are meant to differ, the low term pulls a node to
classes that are not its own (docs/graph.md).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, KDBenchError, Logits, Method, Need, Nodes, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.ffg2m import high_frequency_loss, low_frequency_loss


class FFG2M(Method):
    """Predictions of neighbours, and in what these differ, as targets of a network that sees no edge.

    Args:
        temperature: Divides logits in the low term.
        high_temperature: Divides differences of logits in the high term.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits), Need("graph", Nodes, ("teacher",)))
    requires: ClassVar[frozenset[str]] = frozenset({"node_scores"})

    def __init__(self, temperature: PositiveFloat = 1.0, high_temperature: PositiveFloat = 1.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.high_temperature = high_temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``low`` and ``high``."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "ffg2m")
        edges = signals.feature("graph", "teacher").edges  # type: ignore[attr-defined]
        if edges is None:
            raise KDBenchError("ffg2m: the nodes of the teacher come without edges: choose others by method.bind.graph")
        edges = edges[:, edges[0] != edges[1]]
        if student.mask is not None:  # edges count all rows
            edges = edges[:, student.mask[edges].all(0)]
            place = student.mask.cumsum(0) - 1
            edges = place[edges]
        rows = student.rows(), teacher.rows()
        losses = {
            "low": lambda: low_frequency_loss(*rows, edges, self.temperature),
            "high": lambda: high_frequency_loss(*rows, edges, self.high_temperature),
        }
        return {term: loss() for term, loss in losses.items() if ctx.wants(term)}
