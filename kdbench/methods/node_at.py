"""Attention transfer between graphs.

Paper: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2; nodes stand for positions.
``form: energy`` is the mean of squares of the authors' code. ``form: edges`` compares the attention of a graph
attention network itself (Velickovic et al., ICLR 2018): the KL divergence from the student's to the teacher's attention
of each node to its neighbours, averaged over heads.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdbench import Context, KDBenchError, Method, Need, Nodes, Signals
from kdbench.functional.node_at import edge_attention_loss, node_energy_loss


class NodeAT(Method):
    """Compares which nodes of a graph are active, or whom each node attends to.

    Args:
        form: ``energy`` or ``edges``; the latter needs nodes that come with the attention of their graph.
        p: Exponent of the energy, at least 1.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("local", Nodes),)

    def __init__(self, form: Literal["energy", "edges"] = "energy", p: Annotated[float, Field(ge=1)] = 2.0) -> None:
        super().__init__()
        self.form = form
        self.p = p

    def build(self, probe: Signals) -> None:
        """Checks that there is attention where it is compared."""
        for role, nodes in zip(("student", "teacher"), probe.pair("local"), strict=True):
            if self.form == "edges" and nodes.edge_values is None:
                raise KDBenchError(
                    f"node_at: the nodes of the {role} come without the attention of their graph: tap it as "
                    "<tap>.attention, choose others by method.bind.local, or method.form=energy"
                )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``node_at``."""
        student, teacher = signals.pair("local")
        if self.form == "edges":
            return {"node_at": edge_attention_loss(student.edge_values, teacher.edge_values, student.edges[1])}
        return {"node_at": node_energy_loss(student.rows(), teacher.rows(), student.sample(), self.p)}
