"""Networks over graphs of people and objects: local context, global context, both, or none.

Taps: ``local`` are the nodes after the graph of each step, ``graphs[-1]#1`` its attention, ``context`` the nodes that
the heads read, ``pooled`` their mean over a video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kdbench.errors import KDBenchError, nearest
from tasks.hoi.layout import CLIP, HUMAN, OBJECT
from tasks.hoi.models.attention import Across, AcrossGATv2, GATv2

TARGETS = (HUMAN, OBJECT, CLIP)
Form = Literal["dot", "gatv2"]


class ContextNet(nn.Module):
    """Nodes of people and objects in the context of their step, of the whole video, or of both.

    Args:
        features: Number of values of a ``human`` node, an ``object`` node and an ``edge``.
        classes: Number of classes of each of ``targets``.
        targets: Heads: ``human``, ``object`` or ``clip``.
        width: Of nodes.
        heads: Of attention.
        local: Layers of the graph of each step; 0 leaves the local context out.
        time: What joins steps: ``none``; ``gru``, both directions, each node by itself; ``global``, the graph of all
            nodes of all steps; ``both``, that graph over nodes that a GRU has followed.
        layers: Of that graph.
        form: Of its attention: ``dot`` (scaled dot-product) or ``gatv2``.
        sets: Joins to each node mean and maximum of those of its step, in place of a graph (DeepSets).
        carried: Whether the graph of a step carries the values of edges, not only attends by them.
        dropout: Of what each layer adds.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: Mapping[str, int],
        targets: Sequence[str] = (HUMAN, OBJECT),
        width: PositiveInt = 48,
        heads: PositiveInt = 4,
        local: NonNegativeInt = 1,
        time: Literal["none", "gru", "global", "both"] = "global",
        layers: PositiveInt = 2,
        form: Form = "dot",
        sets: bool = False,
        carried: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__()
        for target in targets:
            if target not in TARGETS:
                raise KDBenchError(f"targets: there is no head {target!r}: {nearest(target, TARGETS)}")
        if width % heads or width % 2:
            raise KDBenchError(f"width={width} heads={heads}: expected an even width that is a multiple of the heads")
        self.targets = tuple(targets)
        self.embed = nn.ModuleDict({kind: nn.Linear(features[kind], width) for kind in (HUMAN, OBJECT)})
        self.norm = nn.LayerNorm(width)
        self.sets = Sets(width) if sets else None
        self.graphs = nn.ModuleList(GATv2(width, heads, features["edge"], carried) for _ in range(local))
        self.drop = nn.Dropout(dropout)
        self.local = nn.Identity()
        self.tracks = Tracks(width) if time in ("gru", "both") else None
        self.video = Global(width, heads, layers, form, dropout) if time in ("global", "both") else None
        self.fuse = nn.Linear(2 * width, width) if time != "none" and (local or sets) else None
        self.context = nn.Identity()
        self.pooled = nn.Identity()
        self.classify = nn.ModuleDict({target: nn.Linear(width, classes[target]) for target in self.targets})

    def forward(self, human: Tensor, object: Tensor, edge: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Classifies people, objects and videos; arguments are those of :class:`~tasks.hoi.batches.Inputs`.

        Returns:
            By target: ``human`` ``(B, T, H, classes)``, ``object`` ``(B, T, N, classes)``, ``clip`` ``(B, classes)``.
        """
        people = human.shape[2]
        nodes = torch.cat([self.embed[HUMAN](human), self.embed[OBJECT](object)], 2)
        there = mask[..., None]
        nodes = self.norm(nodes).relu() * there
        if self.sets is not None:
            nodes = self.sets(nodes, mask)
        for graph in self.graphs:
            nodes = nodes + self.drop(graph(nodes, mask, edge)[0].relu())
        nodes = self.local(nodes)
        wider = nodes
        for over_time in (self.tracks, self.video):
            if over_time is not None:
                wider = over_time(wider, mask)
        nodes = wider if self.fuse is None else self.fuse(torch.cat([nodes, wider], -1)).relu() * there
        nodes = self.context(nodes)
        parts = {HUMAN: nodes[:, :, :people], OBJECT: nodes[:, :, people:], CLIP: self.pooled(mean(nodes, mask))}
        return {target: self.classify[target](parts[target]) for target in self.targets}


def mean(nodes: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the nodes that are there, ``(B, D)``, of ``(B, T, M, D)``."""
    counts = mask.sum((1, 2)).clamp(min=1)[:, None]
    return (nodes * mask[..., None]).sum((1, 2)) / counts


class Sets(nn.Module):
    """DeepSets (Zaheer et al., NeurIPS 2017): each node with mean and maximum of all nodes of its step.

    Args:
        width: Of nodes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(B, T, M, D)`` of ``(B, T, M, D)``, which is not negative and zero where nodes are not there."""
        there = mask[..., None]
        average = nodes.sum(2, keepdim=True) / there.sum(2, keepdim=True).clamp(min=1)
        largest = nodes.amax(2, keepdim=True)
        found: Tensor = self.mlp(torch.cat([nodes, average.expand_as(nodes), largest.expand_as(nodes)], -1))
        return found * there


class Tracks(nn.Module):
    """A GRU over the steps of each node, in both directions; what follows the end of a video has no part in it.

    Args:
        width: Of nodes; each direction gives half of it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.forwards = nn.GRU(width, width // 2, batch_first=True)
        self.backwards = nn.GRU(width, width // 2, batch_first=True)

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(B, T, M, D)`` of ``(B, T, M, D)``."""
        batch, steps, count, width = nodes.shape
        step = torch.arange(steps, device=nodes.device)
        length = (mask.any(2) * (step + 1)).amax(1, keepdim=True)
        back = torch.where(step < length, length - 1 - step, step)[:, :, None, None]

        def turned(values: Tensor) -> Tensor:
            return values.gather(1, back.expand_as(values))

        def run(gru: nn.GRU, values: Tensor) -> Tensor:
            tracks = values.transpose(1, 2).reshape(batch * count, steps, width)
            found: Tensor = gru(tracks)[0]
            return found.view(batch, count, steps, width // 2).transpose(1, 2)

        both = [run(self.forwards, nodes), turned(run(self.backwards, turned(nodes)))]
        return torch.cat(both, -1) * mask[..., None]


class Global(nn.Module):
    """Layers of attention over all nodes of all steps, each followed by two linear ones.

    Args:
        width: Of nodes.
        heads: Of attention.
        layers: How many.
        form: Of attention.
        dropout: Of what each adds.
    """

    def __init__(self, width: int, heads: int, layers: int, form: Form, dropout: float) -> None:
        super().__init__()
        kind = {"dot": Across, "gatv2": AcrossGATv2}[form]
        self.attend = nn.ModuleList(kind(width, heads) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(B, T, M, D)`` of ``(B, T, M, D)``."""
        for layer, (attend, mix) in enumerate(zip(self.attend, self.mix, strict=True)):
            nodes = nodes + self.drop(attend(self.norms[2 * layer](nodes), mask))
            nodes = nodes + self.drop(mix(self.norms[2 * layer + 1](nodes)))
        return nodes * mask[..., None]
