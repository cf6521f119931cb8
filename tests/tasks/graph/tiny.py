"""A small graph for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.store import Store
from tasks.graph import layout
from tasks.graph.citations import Citations, make
from tasks.graph.task import GraphTask

OPTIONS: dict[str, Any] = {
    "source": "citations",
    "citations": {"papers": 300, "per_class": 5},
    "steps": 2,
}
MLP = {"_target_": "tasks.graph.models.MLP", "width": 8}
GCN = {"_target_": "tasks.graph.models.GCN", "width": 8}
SAGE = {"_target_": "tasks.graph.models.SAGE", "width": 8, "views": ["cites", "cited"]}
GAT = {"_target_": "tasks.graph.models.GAT", "width": 8, "heads": 2}
POSITIONS = {"_target_": "tasks.graph.models.PositionMLP", "width": 8, "positions": 4}
TAPS = {"hidden": "hidden", "pooled": "hidden"}


def task(folder: Path, options: dict[str, Any] | None = None) -> GraphTask:
    """Returns the task on made-up papers, or on other data."""
    return GraphTask(options or OPTIONS, Store(folder))


def write_cora(folder: Path) -> None:
    """Writes ``cora.npz`` of 140 made-up papers with edges that have no direction."""
    made = make(Citations(papers=140, per_class=3))
    parts = np.random.default_rng(0).permutation(140)
    splits = {"train": parts[:50], "val": parts[50:80], "test": parts[80:]}
    folder.mkdir(parents=True, exist_ok=True)
    layout.write(folder / "cora.npz", replace(made, splits=splits, directed=False))


def write_hypergraph(path: Path, nodes: int = 60, **changes: Any) -> None:
    """Writes a file of a made-up hypergraph with two training sets; ``changes`` are other arrays."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(2, 5, size=nodes // 2)
    arrays = {
        "indptr": np.arange(nodes + 1),
        "indices": np.arange(nodes) % 7,
        "shape": np.array([nodes, 7]),
        "y": np.arange(nodes) % 3,
        "edge_ptr": np.concatenate([[0], sizes.cumsum()]),
        "members": np.concatenate([draw.choice(nodes, n, replace=False) for n in sizes]),
        "train": np.arange(24).reshape(2, 12),
    }
    np.savez(path, **{**arrays, **changes})


def write_ratings(folder: Path) -> None:
    """Writes ``u.data`` of twelve users with thirty ratings each."""
    draw = np.random.default_rng(0)
    rows = [(u + 1, i + 1, draw.integers(1, 6), t) for u in range(12) for t, i in enumerate(draw.permutation(40)[:30])]
    (folder / "u.data").write_text("\n".join("\t".join(map(str, row)) for row in rows))
