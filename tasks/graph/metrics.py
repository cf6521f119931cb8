"""Scores of nodes: of those that are cold, of those that the teacher answered, and how well edges can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

#: Sets of nodes, and the metric that counts them: cold ones, those that training saw without their label, and of the
#: cold ones those that tell nothing by themselves, those without an edge, and all without the edges they came with.
NAMES = {
    "scored": "accuracy",
    "tran": "accuracy_tran",
    "blank": "accuracy_blank",
    "isolated": "accuracy_isolated",
    "unlinked": "accuracy_unlinked",
}
#: Share of nodes that the teacher answered in ``accuracy_prod`` (Zhang et al., GLNN, ICLR 2022: a production setting).
ANSWERED = 0.8
BINS = 15


class Scores(Metric):
    """Shares of nodes whose class is found, in percent; each where its set has a node (:data:`NAMES`).

    Of the scored nodes also ``macro_f1``, the mean F1 of the classes that occur in the truth, the negative
    log-likelihood ``nll`` and the expected calibration error ``ece``; ``accuracy_prod`` weighs answered nodes with
    :data:`ANSWERED` and cold ones with the rest.

    Args:
        classes: How many there are.
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    scored_matrix: Tensor
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        for name in NAMES:
            matrix = torch.zeros(classes, classes, dtype=torch.long)
            self.add_state(f"{name}_matrix", matrix, dist_reduce_fx="sum")
        for name in ("logits", "labels"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, sets: Mapping[str, Tensor]) -> None:
        """Adds a graph.

        Args:
            logits: ``(N, classes)``.
            labels: ``(N,)``.
            sets: By name of :data:`NAMES`, ``(N,)`` bool.
        """
        for name in NAMES.keys() & sets.keys():
            said, true = logits[sets[name]], labels[sets[name]]
            matrix = multiclass_confusion_matrix(said.argmax(1), true, self.classes, validate_args=False)
            setattr(self, f"{name}_matrix", getattr(self, f"{name}_matrix") + matrix)
            if name == "scored":
                self.logits.append(said)
                self.labels.append(true)

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all graphs so far."""
        found = {}
        for name, metric in NAMES.items():
            matrix = getattr(self, f"{name}_matrix").double()
            if matrix.sum():
                found[metric] = 100 * matrix.diagonal().sum() / matrix.sum()
        if {"accuracy", "accuracy_tran"} <= found.keys():
            found["accuracy_prod"] = ANSWERED * found["accuracy_tran"] + (1 - ANSWERED) * found["accuracy"]
        if "accuracy" in found:
            matrix = self.scored_matrix.double()
            true, said = matrix.sum(1), matrix.sum(0)
            found["macro_f1"] = 100 * (2 * matrix.diagonal() / (true + said))[true > 0].mean()
            logits, labels = torch.cat(self.logits).float(), torch.cat(self.labels)
            found["nll"] = F.cross_entropy(logits, labels)
            error = multiclass_calibration_error(logits.softmax(1), labels, self.classes, BINS, validate_args=False)
            found["ece"] = 100 * error
        return found


@torch.no_grad()
def structure_map(nodes: Tensor, edges: Tensor, chunk: int = 512) -> float:
    """Says how well the neighbours of a node can be told by what a network holds of all nodes, in percent.

    The mean over nodes with a neighbour of the average precision with which these stand first among all other nodes,
    ordered by the cosine to it (after RESTORE: Dollar et al., "RESTORE: Graph Embedding Assessment Through
    Reconstruction", 2023). It means nothing where neighbours are meant to differ.

    Args:
        nodes: ``(N, D)``.
        edges: ``(2, E)`` both ways, none of a node with itself.
        chunk: Nodes at once.
    """
    unit = F.normalize(nodes.float(), dim=1)
    count, ranks = len(nodes), torch.arange(1, len(nodes) + 1, device=nodes.device)
    total, queries = 0.0, 0
    own = torch.arange(count, device=nodes.device)
    for start in range(0, count, chunk):
        rows = own[start : start + chunk]
        near = torch.zeros(len(rows), count, device=nodes.device)
        inside = (edges[1] >= start) & (edges[1] < start + len(rows))
        near[edges[1][inside] - start, edges[0][inside]] = 1
        likeness = unit[rows] @ unit.T
        likeness[rows - start, rows] = -torch.inf
        hits = near.gather(1, likeness.argsort(dim=1, descending=True, stable=True))
        there = hits.sum(1)
        precision = (hits * hits.cumsum(1) / ranks).sum(1)
        total += float((precision / there.clamp(min=1)).sum())
        queries += int((there > 0).sum())
    return 100 * total / max(queries, 1)
