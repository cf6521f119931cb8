"""Features of a graph for methods that read nodes."""

from __future__ import annotations

import torch

from kdbench.features import Feature, Logits, Nodes
from tests.methods.harness import normal


def graphs(role: str, width: int, batch: int = 3, dtype: torch.dtype = torch.float32) -> Nodes:
    """A triangle for each sample, joined both ways and to itself, with attention that sums to one."""
    owner = torch.arange(batch).repeat_interleave(3)
    pairs = torch.tensor([(i, j) for j in range(3) for i in range(3)]).reshape(9, 2)
    edges = (3 * torch.arange(batch)[:, None, None] + pairs).reshape(-1, 2).T
    attention = normal(batch * 3, 3, name=f"{role} attention").softmax(1).flatten()
    return Nodes(normal(3 * batch, width, name=role).to(dtype), edges, owner, attention)


def scores(role: str, classes: int = 5, batch: int = 3, dtype: torch.dtype = torch.float32, **kind: str) -> Logits:
    """Class scores of three nodes of each sample, the last of which does not count."""
    mask = torch.ones(batch, 3, dtype=torch.bool)
    mask[:, 2] = False
    return Logits((3 * normal(batch, 3, classes, name=f"{role} scores")).to(dtype), -1, mask, **kind)  # type: ignore[arg-type]


def features(role: str, width: int, batch: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Feature]:
    """Nodes and the scores of two heads."""
    return {
        "context": graphs(role, width, batch, dtype),
        "human": scores(role, 5, batch, dtype),
        "object": scores(f"{role} object", 4, batch, dtype, law="bernoulli"),
    }
