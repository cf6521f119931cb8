"""Contrastive representation distillation of nodes.

Paper: Joshi, Liu, Xun, Lin, Foo, "On Representation Knowledge Distillation for Graph Neural Networks", TNNLS 2022. The
equations are read in the authors' code: G-CRD is the loss of its ``nce_criterion``, the global structure preserving
loss that of ``gpw_criterion`` with the cosine kernel.
Deviations: both networks are projected linearly, as widths differ; of many nodes some are drawn for a step.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Method, Need, Nodes, Signals
from kdbench.functional.gcrd import node_contrast_loss
from kdbench.functional.lsp import global_structure_loss


class GCRD(Method):
    """Each node finds itself among those of the teacher; beside it the likeness of all pairs.

    Args:
        width: Of the space in which nodes are compared.
        temperature: Divides cosines.
        nodes: Most nodes of a step.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("nodes", Nodes),)
    over_batch: ClassVar[bool] = True

    def __init__(self, width: PositiveInt = 64, temperature: PositiveFloat = 0.075, nodes: PositiveInt = 1024) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature
        self.nodes = nodes

    def build(self, probe: Signals) -> None:
        """Makes both projections."""
        student, teacher = (feature.values.shape[1] for feature in probe.pair("nodes"))
        self.student, self.teacher = nn.Linear(student, self.width), nn.Linear(teacher, self.width)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``gcrd`` and ``gsp``."""
        student, teacher = (feature.rows() for feature in signals.pair("nodes"))
        if len(student) > self.nodes:
            drawn = torch.randperm(len(student), generator=ctx.generator("gcrd"))[: self.nodes].to(student.device)
            student, teacher = student[drawn], teacher[drawn]
        losses = {
            "gcrd": lambda: node_contrast_loss(self.student(student), self.teacher(teacher), self.temperature),
            "gsp": lambda: global_structure_loss(student, teacher),
        }
        return {term: loss() for term, loss in losses.items() if ctx.wants(term)}
