"""A graph of one's own as two tables: ``nodes.csv`` and ``edges.csv``.

``nodes.csv`` has the columns ``id``, ``label`` (empty for none) and, where cuts are given, ``split`` (``train``,
``val``, ``test``, ``cold`` or empty); every other column is a number that a network reads. ``edges.csv`` has ``source``
and ``target``. Without ``split``, nodes with a label are dealt by the hash of their ids: 20 of a class train, a tenth
of the others are validation, the rest is test.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from kdbench.errors import KDBenchError, absent, nearest, printable, reading
from kdbench.splits import cut
from tasks.graph.layout import SPLITS, UNKNOWN, Graph, checked

NODES, EDGES = "nodes.csv", "edges.csv"
#: Labelled nodes of a class that train, where the table does not say which.
FEW = 20


def files(root: Path) -> list[Path]:
    """Returns both tables.

    Raises:
        KDBenchError: One is missing.
    """
    for name in (NODES, EDGES):
        if not (root / name).is_file():
            raise KDBenchError(f"{absent(root / name)}; expected {NODES} and {EDGES}, or graph.npz")
    return [root / NODES, root / EDGES]


def read(root: Path, name: str, directed: bool) -> Graph:
    """Reads both tables.

    Args:
        root: Their folder.
        name: Of the data set.
        directed: Whether an edge goes from its source to its target.

    Raises:
        KDBenchError: A table is missing or not as described above; the line names the row.
    """
    nodes, links = files(root)
    head, rows = _table(nodes, ("id", "label"))
    places: dict[str, int] = {}
    for line, row in rows:
        if row["id"] in places:
            raise KDBenchError(f"{printable(nodes)}:{line}: the id {row['id']!r} is there twice")
        places[row["id"]] = len(places)
    classes = tuple(sorted({row["label"] for _, row in rows} - {""}))
    numbers = {label: i for i, label in enumerate(classes)}
    labels = np.array([numbers.get(row["label"], UNKNOWN) for _, row in rows])
    columns = [column for column in head if column not in ("id", "label", "split")]
    if not columns:
        raise KDBenchError(f"{printable(nodes)}: there is no column of numbers beside id, label and split")
    words = np.zeros((len(rows), len(columns)), np.float32)
    for place, (line, row) in enumerate(rows):
        try:
            words[place] = [float(row[column] or 0) for column in columns]
        except ValueError:
            bad = next(column for column in columns if not _number(row[column]))
            raise KDBenchError(f"{printable(nodes)}:{line}: {bad} is {row[bad]!r}, expected a number") from None
        if not np.isfinite(words[place]).all():
            bad = columns[int(np.flatnonzero(~np.isfinite(words[place]))[0])]
            raise KDBenchError(f"{printable(nodes)}:{line}: {bad} is {row[bad]!r}, expected a finite number")
    edges = []
    for line, row in _table(links, ("source", "target"))[1]:
        for end in ("source", "target"):
            if row[end] not in places:
                raise KDBenchError(
                    f"{printable(links)}:{line}: {end} {row[end]!r} is no id of {NODES}: {nearest(row[end], places)}"
                )
        edges.append((places[row["source"]], places[row["target"]]))
    splits = _given(nodes, rows) if "split" in head else _dealt([*places], labels)
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    graph = Graph(name, sp.csr_matrix(words), labels, pairs, classes, splits, directed)
    return checked(graph, printable(root))


def _table(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the columns of a table and its rows with their lines."""
    with reading(path), path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        table = csv.DictReader(stream)
        head = [*(table.fieldnames or ())]
        missing = next((column for column in needed if column not in head), None)
        if missing:
            raise KDBenchError(f"{printable(path)}: there is no column {missing!r}: {nearest(missing, head)}")
        rows = []
        for row in table:
            if None in row or None in row.values():
                raise KDBenchError(f"{printable(path)}:{table.line_num}: expected {len(head)} values")
            rows.append((table.line_num, {key: value.strip() for key, value in row.items()}))
        return head, rows


def _number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _given(path: Path, rows: list[tuple[int, dict[str, str]]]) -> dict[str, np.ndarray]:
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    for place, (line, row) in enumerate(rows):
        if row["split"] and row["split"] not in found:
            raise KDBenchError(f"{printable(path)}:{line}: there is no split {row['split']!r}: {', '.join(SPLITS)}")
        if row["split"]:
            found[row["split"]].append(place)
    return {name: np.array(nodes, np.int64) for name, nodes in found.items() if nodes}


def _dealt(ids: list[str], labels: np.ndarray) -> dict[str, np.ndarray]:
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"train/{ids[i]}".encode()).digest())
    train: list[int] = []
    for label in range(int(labels.max(initial=-1)) + 1):
        own = [i for i in order if labels[i] == label]
        train += own[: min(FEW, max(1, len(own) // 3))]
    rest = [i for i in range(len(ids)) if labels[i] != UNKNOWN and i not in {*train}]
    val = {rest[i] for i in cut([ids[i] for i in rest], labels=[int(labels[i]) for i in rest])}
    parts = {"train": sorted(train), "val": sorted(val), "test": [i for i in rest if i not in val]}
    return {name: np.array(nodes, np.int64) for name, nodes in parts.items()}
