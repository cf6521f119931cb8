"""Planetoid's files, ``ind.NAME.x`` and its siblings, read without executing a pickle.

Yang, Cohen, Salakhutdinov: Revisiting Semi-Supervised Learning with Graph Embeddings, ICML 2016.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from kdbench.base.pickles import read_pickle
from kdbench.errors import KDBenchError, absent, printable, reading
from tasks.graph.layout import UNKNOWN, Graph, checked

PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph")
#: Nodes of the published validation cut, which follow those of training.
HELD = 500


def names(root: Path) -> list[str]:
    """Returns the data sets whose files lie in a folder."""
    return sorted(path.name.split(".")[1] for path in root.glob("ind.*.allx"))


def files(root: Path, name: str) -> list[Path]:
    """Returns the files of a data set.

    Raises:
        KDBenchError: One is missing.
    """
    found = [root / f"ind.{name}.{part}" for part in (*PARTS, "test.index")]
    for path in found:
        if not path.is_file():
            raise KDBenchError(f"{absent(path)}; expected {', '.join(PARTS)} and test.index of ind.{name}")
    return found


def read(root: Path, name: str) -> Graph:
    """Reads a data set with its public split.

    Nodes whose numbers are missing in ``test.index`` have neither words nor label, and stay so that no row shifts.

    Raises:
        KDBenchError: A file is missing, is not what the release holds, or asks for something that would be executed.
    """
    *pickles, index = files(root, name)
    parts: dict[str, Any] = {part: _load(path) for part, path in zip(PARTS, pickles, strict=True)}
    where = printable(root / f"ind.{name}.*")
    with reading(index):
        text = index.read_text(encoding="utf-8", errors="replace").split()
    if not text or not all(re.fullmatch(r"\d{1,9}", line) for line in text):
        raise KDBenchError(f"{printable(index)}: expected a node number a line")
    order = np.array([int(line) for line in text])
    first = parts["allx"].shape[0]
    if len(order) != parts["tx"].shape[0] or int(order.min()) < first or len(np.unique(order)) != len(order):
        raise KDBenchError(f"{printable(index)}: {len(order)} numbers for the {parts['tx'].shape[0]} rows of tx")
    count = int(order.max()) + 1
    moved = sp.csr_matrix((np.ones(len(order)), (order - first, np.arange(len(order)))), (count - first, len(order)))
    words = sp.vstack([parts["allx"], moved @ parts["tx"]]).tocsr()
    shown = np.zeros((count, parts["ally"].shape[1]))
    shown[:first], shown[order] = parts["ally"], parts["ty"]
    labels = np.where(shown.any(1), shown.argmax(1), UNKNOWN)
    edges = [(a, b) for a, others in parts["graph"].items() for b in others]
    few = parts["y"].shape[0]
    splits = {"train": np.arange(few), "val": np.arange(few, min(few + HELD, first)), "test": np.sort(order)}
    classes = tuple(map(str, range(shown.shape[1])))
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    # Every citation stands at both of its ends there, which is one edge.
    graph = Graph(name, words.astype(np.float32), labels, np.unique(np.sort(pairs, 1), axis=0), classes, splits)
    return checked(graph, where)


def _load(path: Path) -> Any:
    found = read_pickle(path, "Planetoid's release")
    if isinstance(found, dict):
        try:
            return {int(node): [int(other) for other in others] for node, others in found.items()}
        except (TypeError, ValueError):
            raise KDBenchError(f"{printable(path)}: expected for each node the numbers of others") from None
    if not isinstance(found, np.ndarray | sp.csr_matrix):
        raise KDBenchError(
            f"{printable(path)}: holds {type(found).__name__}, expected an array, a sparse matrix or a dict"
        )
    return found
