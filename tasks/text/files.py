"""Texts of one's own: tables (csv, tsv, jsonl) and folders of txt files, in UTF-8.

``data.root`` is a folder with ``train`` and, where there are any, ``val`` (or ``valid``, ``dev``) and ``test``, each a
table or a folder of txt files; or a table or a folder of txt files itself, of which a tenth is test by the hash of the
names. A table has a column of texts and one of labels; in a folder the label is the name of the folder that a file lies
in.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import KDBenchError, absent, nearest, printable, reading
from kdbench.splits import cut

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl")
#: Longest field of a table, in characters; Python's own limit is 131,072.
LONGEST = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """A text.

    Attributes:
        name: File and line, by whose hash cuts are made.
        text: It.
        label: Its class; empty where it has none.
    """

    name: str
    text: str
    label: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of tables.

    Attributes:
        text: Of the texts.
        label: Of their classes; None where they are not read.
    """

    text: str = "text"
    label: str | None = None


def read(root: Path, columns: Columns) -> dict[str, list[Row]]:
    """Reads all texts by split; ``val`` and ``test`` are there where files give them.

    Args:
        root: As the module says.
        columns: Of its tables.

    Raises:
        KDBenchError: There is none, or one is not as described.
    """
    if not root.exists():
        raise KDBenchError(f"data.root={absent(root)}")
    found: dict[str, list[Row]] = {}
    for split, path in _parts(root):
        if split in found:
            raise KDBenchError(f"data.root={printable(root)}: found {split} twice, expected one: remove one of them")
        found[split] = list(_rows(path, root, columns))
    texts = sum(map(len, found.values()))
    if "train" not in found or not texts:
        raise KDBenchError(
            f"data.root={printable(root)}: found no texts, expected train{', train'.join(TABLES)} or a folder of .txt"
        )
    return found


def of_test(found: dict[str, list[Row]]) -> tuple[list[Row], list[Row]]:
    """Returns the texts to learn from and those of test, a tenth by the hash of their names where none are given.

    Raises:
        KDBenchError: There are too few.
    """
    learn = found["train"]
    if "test" in found:
        return learn, found["test"]
    if len(learn) < 3:
        raise KDBenchError(
            f"data.root: found {len(learn)} texts, expected three at least: one each to learn, choose, test"
        )
    held = {*cut([row.name for row in learn], purpose="test", labels=[row.label for row in learn])}
    return [row for n, row in enumerate(learn) if n not in held], [row for n, row in enumerate(learn) if n in held]


def _parts(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields each split and the table or folder that holds it."""
    if root.is_file():
        yield "train", root
        return
    with reading(root):
        inside = sorted(root.iterdir())
    named = [
        (SPLITS[path.stem if path.is_file() else path.name], path)
        for path in inside
        if (path.stem if path.is_file() else path.name) in SPLITS
        and (path.is_dir() or path.suffix in (*TABLES, ".txt"))
    ]
    if named:
        yield from named
        return
    tables = [path for path in inside if path.suffix in TABLES]
    if len(tables) > 1:
        raise KDBenchError(
            f"data.root={printable(root)}: found {tables[0].name} and {tables[1].name}, expected train and test"
            f"{tables[0].suffix}, or one table"
        )
    yield "train", tables[0] if tables else root


def _rows(path: Path, root: Path, columns: Columns) -> Iterator[Row]:
    """Yields the texts of a table or a folder."""
    if path.is_dir():
        with reading(path):
            files = sorted(file for file in path.rglob("*.txt") if file.is_file())
        for file in files:
            label = file.parent.name if columns.label is not None else ""
            if columns.label is not None and file.parent == path:
                raise KDBenchError(f"{printable(file)}: expected a folder for each class: CLASS/{file.name}")
            yield Row(file.relative_to(root).as_posix(), _content(file), label)
    elif path.suffix == ".txt":
        if columns.label is not None:
            raise KDBenchError(
                f"{printable(path)}: found a text without a class, expected {', '.join(TABLES)} or folders"
            )
        yield Row(path.name, _content(path))
    else:
        table = _json(path) if path.suffix == ".jsonl" else _separated(path)
        for line, entry in table:
            yield _row(path, line, entry, columns)


def _content(path: Path) -> str:
    try:
        with reading(path):
            return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KDBenchError(
            f"{printable(path)}: found bytes that are no UTF-8 ({error.reason}), expected UTF-8"
        ) from None


def _row(path: Path, line: int, entry: dict[str, Any], columns: Columns) -> Row:
    where = f"{printable(path)}:{line}"
    for column in filter(None, (columns.text, columns.label)):
        if column not in entry:
            raise KDBenchError(f"{where}: there is no {column!r}: {nearest(column, entry)}; or data.columns.…=NAME")
    text, label = entry[columns.text], "" if columns.label is None else entry[columns.label]
    if not isinstance(text, str):
        raise KDBenchError(f"{where}: {columns.text} is {text!r}, expected a text")
    if isinstance(label, bool) or not isinstance(label, str | int) or (columns.label is not None and label == ""):
        raise KDBenchError(f"{where}: {columns.label} is {label!r}, expected the name or number of a class")
    return Row(f"{path.name}:{line}", text, str(label))


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_content(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except ValueError as error:
            raise KDBenchError(
                f"{printable(path)}:{line}: found no JSON ({error}), expected an object a line"
            ) from None
        if not isinstance(entry, dict):
            raise KDBenchError(f"{printable(path)}:{line}: found a {type(entry).__name__}, expected an object a line")
        yield line, entry


def _separated(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST)
    lines = _content(path).splitlines(keepends=True)
    table = csv.DictReader(lines, delimiter=SEPARATORS[path.suffix], strict=True)
    try:
        for row in table:
            if None in row or None in row.values():
                raise KDBenchError(f"{printable(path)}:{table.line_num}: expected {len(table.fieldnames or ())} values")
            yield table.line_num, row
    except csv.Error as error:
        raise KDBenchError(
            f"{printable(path)}:{table.line_num}: found no table ({error}), expected quoted fields"
        ) from None
