"""A graph in memory and as a file: words or values of nodes, labels, edges and cuts, checked; an ``.npz`` of arrays.

The arrays: ``indptr`` ``indices`` ``shape`` (and ``values`` where they are not all one) are the sparse features, row i
holds ``indices[indptr[i]:indptr[i+1]]``; ``y`` labels, -1 for none; ``edges`` pairs of nodes; ``train`` ``val``
``test`` nodes. There may be ``cold``, nodes whose edges a student does not see; ``arrival``, their order in time;
``blank``, nodes that tell nothing of themselves; ``law``, what is known of their class by their words; ``names`` of the
classes; ``directed``, whether an edge goes from its first node to its second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp

from kdbench.errors import KDBenchError, printable, reading

#: Of a node without a label.
UNKNOWN = -1
SPLITS = ("train", "val", "test", "cold")
NEEDED = ("indptr", "indices", "shape", "y", "edges")


@dataclass(frozen=True)
class Graph:
    """One graph.

    Attributes:
        name: Of the data set.
        words: ``(N, V)`` features of nodes, sparse.
        labels: ``(N,)`` classes, :data:`UNKNOWN` for none.
        edges: ``(E, 2)`` pairs, each once and none with itself; from the first node to the second where ``directed``.
        classes: Names of the classes.
        splits: Nodes by split, some of :data:`SPLITS`.
        directed: Whether edges have a direction.
        arrival: ``(N,)`` order in time, or None.
        blank: ``(N,)`` nodes whose features tell nothing of them, or None.
        law: ``(N, K)`` what a perfect reader knows of the class by the features alone, or None.
        hyper: ``(K, 2)`` nodes and hyperedges that they are in, or None where these follow from the edges.
        embedded: Whether it comes without files.
        notes: What was put right while it was read.
    """

    name: str
    words: sp.csr_matrix
    labels: np.ndarray
    edges: np.ndarray
    classes: tuple[str, ...]
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)
    directed: bool = False
    arrival: np.ndarray | None = None
    blank: np.ndarray | None = None
    law: np.ndarray | None = None
    hyper: np.ndarray | None = None
    embedded: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def checked(graph: Graph, where: str) -> Graph:
    """Checks a graph as it was read, and leaves out edges that are there twice or join a node with itself.

    Args:
        graph: As it stands in ``where``.
        where: File, for errors.

    Raises:
        KDBenchError: Its arrays contradict each other.
    """
    count = len(graph)
    if not count:
        raise KDBenchError(f"{where}: the graph has no node, expected two at least")
    if graph.words.shape[0] != count:
        raise KDBenchError(f"{where}: {graph.words.shape[0]} rows of features for {count} labels, expected one a node")
    if not np.isfinite(graph.words.data).all():
        row = int(np.searchsorted(graph.words.indptr, np.flatnonzero(~np.isfinite(graph.words.data))[0], "right")) - 1
        raise KDBenchError(f"{where}: a feature of node {row} is not finite, expected numbers: leave it out or set 0")
    classes = len(graph.classes)
    if not -1 <= int(graph.labels.min()) <= int(graph.labels.max()) < classes:
        raise KDBenchError(
            f"{where}: labels go from {graph.labels.min()} to {graph.labels.max()}, expected -1 (none) to {classes - 1}"
        )
    outside = (graph.edges < 0) | (graph.edges >= count)
    if outside.any():
        edge = int(np.flatnonzero(outside.any(1))[0])
        a, b = graph.edges[edge].tolist()
        raise KDBenchError(f"{where}: edge {edge} joins {a} and {b}, expected nodes 0 to {count - 1}")
    _check_splits(graph, where)
    edges, notes = _once(graph.edges, graph.directed)
    return Graph(**{**vars(graph), "edges": edges, "notes": (*graph.notes, *notes)})


def _check_splits(graph: Graph, where: str) -> None:
    owner = np.full(len(graph), -1)
    for number, (name, nodes) in enumerate(graph.splits.items()):
        if len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < len(graph):
            raise KDBenchError(f"{where}: {name} names node {nodes.max()}, expected 0 to {len(graph) - 1}")
        taken = nodes[owner[nodes] >= 0]
        if len(taken):
            other = [*graph.splits][owner[taken[0]]]
            raise KDBenchError(
                f"{where}: {len(taken)} nodes are in {other} and in {name}, the first is {taken[0]}: "
                "expected each in one"
            )
        owner[nodes] = number
        bare = nodes[graph.labels[nodes] == UNKNOWN]
        if len(bare):
            raise KDBenchError(f"{where}: node {bare[0]} of {name} has no label: leave it out of {name}")


def _once(edges: np.ndarray, directed: bool) -> tuple[np.ndarray, list[str]]:
    """Returns each edge once, and how many were left out."""
    own = edges[:, 0] == edges[:, 1]
    left = edges[~own]
    kept = np.unique(left if directed else np.sort(left, 1), axis=0)
    found = {"self": int(own.sum()), "duplicate": len(left) - len(kept)}
    return kept.astype(np.int64), [f"edges:{n} {kind} left out" for kind, n in found.items() if n]


def read(path: Path, name: str) -> Graph:
    """Reads a graph from an ``.npz`` of the arrays above, without pickle.

    Raises:
        KDBenchError: It is none, an array is missing, or they contradict each other.
    """
    where = printable(path)
    with reading(path):
        try:
            with np.load(path, allow_pickle=False) as file:
                found: dict[str, Any] = {key: file[key] for key in file.files}
        except (ValueError, BadZipFile, EOFError) as error:
            reason = " ".join(str(error).split())
            raise KDBenchError(f"{where}: no .npz of plain arrays ({reason}); pickled objects are never read") from None
    missing = [key for key in NEEDED if key not in found]
    if missing:
        raise KDBenchError(f"{where}: there is no array {missing[0]!r}, expected {', '.join(NEEDED)}")
    labels = found["y"].astype(np.int64)
    if found["edges"].ndim != 2 or found["edges"].shape[1] != 2:
        raise KDBenchError(f"{where}: edges are {found['edges'].shape}, expected (E, 2)")
    words = features(found, where)
    names = found.get("names")
    classes = tuple(map(str, names)) if names is not None else tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
    graph = Graph(
        name,
        words,
        labels,
        found["edges"].astype(np.int64),
        classes,
        {key: found[key].astype(np.int64) for key in SPLITS if key in found},
        bool(found.get("directed", False)),
        arrival=found.get("arrival"),
        blank=found.get("blank"),
        law=found.get("law"),
    )
    return checked(graph, where)


def features(found: Mapping[str, np.ndarray], where: str) -> sp.csr_matrix:
    """Returns the sparse features that ``indptr``, ``indices``, ``shape`` and ``values`` are."""
    indptr, indices = found["indptr"].astype(np.int64), found["indices"].astype(np.int64)
    rows, columns = map(int, found["shape"])
    values = found.get("values")
    data = np.ones(len(indices), np.float32) if values is None else values.astype(np.float32)
    sound = len(indptr) == rows + 1 and indptr[0] == 0 and indptr[-1] == len(indices) and (np.diff(indptr) >= 0).all()
    if not sound or len(data) != len(indices):
        raise KDBenchError(f"{where}: indptr does not cut indices into {rows} rows")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
        raise KDBenchError(f"{where}: a word has the number {indices.max()}, expected 0 to {columns - 1}")
    return sp.csr_matrix((data, indices, indptr), (rows, columns))


def write(path: Path, graph: Graph) -> None:
    """Writes a graph as :func:`read` reads it."""
    words = graph.words
    arrays: dict[str, Any] = {
        "indptr": words.indptr.astype(np.int32),
        "indices": words.indices.astype(np.int32),
        "shape": np.array(words.shape, np.int32),
        "y": graph.labels.astype(np.int16),
        "edges": graph.edges.astype(np.int32),
        "names": np.array(graph.classes),
        "directed": np.array(graph.directed),
        **{name: nodes.astype(np.int32) for name, nodes in graph.splits.items()},
    }
    if not (words.data == 1).all():
        arrays["values"] = words.data.astype(np.float32)
    arrays |= {k: v for k in ("arrival", "blank", "law") if (v := getattr(graph, k)) is not None}
    np.savez_compressed(path, **arrays)
