"""Reported numbers: what papers and repositories say about the pairs that can be run here.

They were measured under other protocols, by other people, often on the best *test* epoch. They stand in tables of their
own, with their source, and never get a rank.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from kdbench.errors import KDBenchError

ANCHORS = Path(__file__).resolve().parent / "anchors.csv"

#: Which epoch a number is of: the last one, the one that was best on test, or nobody says.
Rule = Literal["last", "best", "unknown"]


@dataclass(frozen=True, slots=True)
class Anchor:
    """One reported number.

    Attributes:
        task: Name as in ``conf/task``; ``pair`` and ``method`` likewise where such an option exists.
        dataset: Name of the data set; the numbers are of its usual test set.
        method: ``teacher`` and ``none`` (the student alone) are the frame of the others.
        metric: Name as in the records.
        value: In percent.
        rule: Which epoch.
        source: Who says so.
        note: What else to know.
    """

    task: str
    dataset: str
    pair: str
    method: str
    metric: str
    value: float
    rule: Rule
    source: str
    note: str


def load(path: Path = ANCHORS) -> list[Anchor]:
    """Reads the reported numbers, in the order of the file.

    Raises:
        KDBenchError: A line is not as it should be; the message names it.
    """
    names = [field.name for field in fields(Anchor)]
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        if (head := next(reader, [])) != names:
            raise KDBenchError(f"{path}: the columns are {','.join(head)}, expected {','.join(names)}")
        return [_anchor(f"{path}:{reader.line_num}", names, line) for line in reader]


def _anchor(where: str, names: Sequence[str], line: Sequence[str]) -> Anchor:
    if len(line) != len(names):
        raise KDBenchError(f"{where}: {len(line)} columns, expected {len(names)}")
    found = dict(zip(names, line, strict=True))
    empty = [name for name in names if name != "note" and not found[name].strip()]
    if empty:
        raise KDBenchError(f"{where}: {empty[0]} is empty")
    if found["rule"] not in get_args(Rule):
        raise KDBenchError(f"{where}: rule is {found['rule']!r}, expected one of {', '.join(get_args(Rule))}")
    try:
        value = float(found.pop("value"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise KDBenchError(f"{where}: the value is no finite number")
    rule = cast(Rule, found.pop("rule"))
    return Anchor(value=value, rule=rule, **found)
