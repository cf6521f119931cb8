"""Rows of earlier calls on disk, so that a rebuild reads only what changed."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from kdbench.base.digest import digest
from kdbench.records.schema import SCHEMA_VERSION
from leaderboard.row import FIELDS, Interner, Metrics, Row, values_of

#: Raised whenever rows of the same records would come out otherwise.
VERSION = 8

State = tuple[int, int]


@dataclass
class RowCache:
    """The rows below one root by path, size and time of change: JSON lines, written aside and renamed.

    A line is a header, the names or the values of metrics that rows refer to by number, or a row.
    """

    file: Path | None
    old: dict[str, tuple[State, Row]] = field(default_factory=dict)
    new: dict[str, tuple[State, Row]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | None, root: Path, intern: Interner) -> RowCache:
        """Opens the cache of ``root``; one that is missing, torn or of another version is empty."""
        if folder is None:
            return cls(None)
        cache = cls(folder / f"{digest(str(root))}.jsonl")
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            cache.old = _load(folder / f"{digest(str(root))}.jsonl", intern)
        return cache

    def has(self, path: str, state: State) -> bool:
        """Whether the row of a file is known; then it stays."""
        known = self.old.get(path)
        if known is None or known[0] != state:
            return False
        self.new[path] = known
        return True

    def get(self, path: str) -> Row | None:
        """Returns the row of a file that :meth:`has` or :meth:`put` named."""
        return self.new[path][1] if path in self.new else None

    def put(self, path: str, state: State, row: Row) -> None:
        """Keeps the row of a file."""
        self.new[path] = state, row

    def save(self) -> None:
        """Writes what this call saw, unless that is what was there. A full disk costs time later, nothing else."""
        if self.file is None or self.new == self.old:
            return
        aside = self.file.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                stream.writelines(to_json(line) + b"\n" for line in _lines(self.new))
            aside.replace(self.file)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()


_HEADER = {"rows": VERSION, "schema": SCHEMA_VERSION, "fields": list(FIELDS)}
_METRICS = tuple(FIELDS.index(name) for name in ("cost", "tuning"))
_PARTS = tuple(FIELDS.index(name) for name in ("scores", "models"))
_FLAGS = FIELDS.index("flags")


def _lines(rows: dict[str, tuple[State, Row]]) -> Iterator[Any]:
    yield _HEADER
    names: dict[int, int] = {}
    metrics: dict[int, int] = {}
    for path, (state, row) in rows.items():
        values = list(values_of(row))
        packed = [row.cost, row.tuning, *row.scores.values, *row.models.values]
        for found in packed:
            if id(found.names) not in names:
                names[id(found.names)] = len(names)
                yield ["names", found.names]
            if id(found) not in metrics:
                metrics[id(found)] = len(metrics)
                yield ["metrics", names[id(found.names)], found.values.tolist()]
        for place in _METRICS:
            values[place] = metrics[id(values[place])]
        for place in _PARTS:
            values[place] = [values[place].names, [metrics[id(found)] for found in values[place].values]]
        yield ["row", path, state, values]


def _load(file: Path, intern: Interner) -> dict[str, tuple[State, Row]]:
    rows: dict[str, tuple[State, Row]] = {}
    names: list[tuple[str, ...]] = []
    metrics: list[Metrics] = []
    with file.open("rb") as stream:
        if from_json(next(stream, b"null")) != _HEADER:
            return {}
        for line in stream:
            kind, *rest = from_json(line)
            if kind == "names":
                names.append(tuple(rest[0]))
            elif kind == "metrics":
                metrics.append(intern(names[rest[0]], array("d", rest[1])))
            else:
                path, (size, time), values = rest
                for place in _METRICS:
                    values[place] = metrics[values[place]]
                for place in _PARTS:
                    parts, numbers = values[place]
                    values[place] = intern.join(parts, [metrics[number] for number in numbers])
                values[_FLAGS] = tuple(values[_FLAGS])
                rows[path] = (size, time), intern.row(values)
    return rows
