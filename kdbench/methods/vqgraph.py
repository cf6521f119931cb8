"""Codes of local structure as targets of a network without a graph.

Paper: Yang, Tian, Xu, Liu, Hong, Qu, Zhang, Cui, Zhang, Leskovec, "VQGraph: Rethinking Graph Representation Space for
Bridging GNNs and MLPs", ICLR 2024: soft labels, and the soft assignment of every node to a codebook of local
structures. Deviations, for which
the fidelity is approximate: the codebook is learned in a stage of its own from the hidden nodes of the trained teacher,
by their distance to the nearest code and by telling edges from drawn pairs, where the release trains teacher and
codebook together, reconstructs the dense adjacency matrix and moves codes by averages; 64 codes, not 5,000; distances
between directions; the term of codes weighs 1, where the release has 1e-8, which is nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, KDBenchError, Logits, Method, Need, Nodes, Signals, Stage
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import upcast
from kdbench.functional.vqgraph import (
    code_distances,
    code_loss,
    code_perplexity,
    edge_prediction_loss,
    quantisation_loss,
)


class VQGraph(Method):
    """Learns a codebook of the teacher's nodes, then has the student's projected nodes choose the same codes.

    Args:
        codes: Of the codebook.
        temperature: Divides distances to codes.
        kd_temperature: Divides logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits), Need("nodes", Nodes))
    requires: ClassVar[frozenset[str]] = frozenset({"node_scores"})
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    over_batch: ClassVar[bool] = True
    used: Tensor

    def __init__(
        self, codes: PositiveInt = 64, temperature: PositiveFloat = 0.1, kd_temperature: PositiveFloat = 1.0
    ) -> None:
        super().__init__()
        self.codes = codes
        self.temperature = temperature
        self.kd_temperature = kd_temperature

    def build(self, probe: Signals) -> None:
        """Starts the codes at nodes of the teacher, drawn, and makes the projection and the decoder of edges."""
        student, teacher = (feature.values for feature in probe.pair("nodes"))
        if not len(teacher):
            raise KDBenchError("vqgraph: the first batch has no node, from which codes could start")
        width = teacher.shape[1]
        drawn = upcast(teacher[torch.randint(len(teacher), (self.codes,)).to(teacher.device)])
        self.codebook = nn.Parameter(drawn + 0.01 * torch.randn(drawn.shape).to(drawn))
        self.project = nn.Linear(student.shape[1], width)
        self.decode = nn.Linear(width, width)
        self.register_buffer("used", torch.zeros(self.codes))

    def stages(self) -> tuple[Stage, ...]:
        """First the codebook, then the student."""
        return (
            Stage("codebook", 0.5, terms=("codebook", "edges"), trains=("own.codebook", "own.decode*")),
            Stage("distil", terms=("task", "kd", "codes"), trains=("student", "own.project*")),
        )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``codebook`` and ``edges`` of the first stage, ``kd`` and ``codes`` of the second."""
        student, teacher = signals.pair("nodes")
        terms: dict[str, Tensor] = {}
        if ctx.wants("codebook"):
            terms["codebook"] = quantisation_loss(teacher.rows(), self.codebook)
        if ctx.wants("edges"):
            terms["edges"] = self._edges(teacher, ctx)
        if ctx.wants("kd"):
            own, other = signals.pair("logits")
            weight = own.row_weight()
            terms["kd"] = kd_loss(own.rows(), other.rows(), self.kd_temperature, law=own.law, weight=weight)
        if ctx.wants("codes"):
            codebook = self.codebook.detach()
            terms["codes"] = code_loss(self.project(upcast(student.rows())), teacher.rows(), codebook, self.temperature)
            if self.training:
                nearest = code_distances(teacher.rows(), codebook).argmin(1)
                self.used.copy_(torch.bincount(nearest, minlength=self.codes))
        return terms

    def _edges(self, teacher: Nodes, ctx: Context) -> Tensor:
        if teacher.edges is None:
            raise KDBenchError(
                "vqgraph: the nodes of the teacher come without edges: choose others by method.bind.nodes"
            )
        edges = teacher.edges[:, teacher.edges[0] != teacher.edges[1]]
        draw = ctx.generator("vqgraph")
        others = torch.randint(max(len(teacher.values), 1), tuple(edges.shape), generator=draw).to(edges.device)
        nearest = code_distances(teacher.values, self.codebook).argmin(1)
        return edge_prediction_loss(self.decode(self.codebook[nearest]), edges, others)

    def notes(self) -> tuple[str, ...]:
        """Says how many codes the teacher's nodes use."""
        return (f"codes: perplexity {float(code_perplexity(self.used)):.1f} of {self.codes}",)
