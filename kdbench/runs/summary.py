"""``python -m kdbench.results``: what lies in the results folder, the seeds of one specification in one row."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from kdbench.base.terminal import decimals
from kdbench.records.schema import TAUGHT, Record


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        half: Half the width of its 95% interval (Student's t); None for one value.
    """

    mean: float
    half: float | None = None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Mean | None:
        """Returns the mean of the values that there are; None where there is none."""
        there = [value for value in values if value is not None]
        if len(there) < 2:
            return cls(there[0]) if there else None
        from scipy import special

        quantile = float(special.stdtrit(len(there) - 1, 0.975))
        return cls(fmean(there), quantile * stdev(there) / math.sqrt(len(there)))


@dataclass(frozen=True)
class Row:
    """The runs of one specification.

    Attributes:
        task: The task.
        data: The data set.
        method: The method, or the role that was trained alone.
        augment: Augmentation with the options that the command sets, and that of the teacher's own training where there
            is one.
        quant: Quantisation, likewise.
        pair: The pair.
        preset: The preset.
        metric: The primary metric; None where no run ended well.
        higher_is_better: Its direction.
        seeds: Of the runs that ended well.
        ended: How many of the others ``failed`` or ``diverged``.
        score: Of what the runs are about, on test.
        gain: Student minus the scratch student of its seed.
        command: Makes the runs again.
        spec_hash: What they have in common.
        folders: Of their records.
    """

    task: str
    data: str
    method: str
    augment: str
    quant: str
    pair: str
    preset: str
    metric: str | None
    higher_is_better: bool
    seeds: tuple[int, ...]
    ended: dict[str, int]
    score: Mean | None
    gain: Mean | None
    command: str
    spec_hash: str
    folders: tuple[str, ...]


def score(record: Record) -> tuple[float | None, float | None]:
    """Returns the score that a run is about and how far it is from scratch."""
    main = record.scores.get("student") or record.scores.get("teacher")
    if main is None or record.primary is None:
        return None, None
    value, scratch = main.test[record.primary.name], record.scores.get("scratch")
    itself = record.method == "none" and record.scores.get("student") == scratch
    base = scratch.test[record.primary.name] if scratch and not itself else None
    return value, None if value is None or base is None else value - base


def rows(records: Iterable[tuple[Path, Record]]) -> list[Row]:
    """Groups runs by specification and teacher; of several runs of a seed the newest that ended well counts."""
    groups: dict[tuple[str, str, str, int], list[tuple[Path, Record]]] = {}
    for path, record in records:
        teacher = record.teacher.seed if record.teacher else 0
        groups.setdefault((record.task, record.method, record.spec_hash, teacher), []).append((path, record))
    return [_row(found) for _, found in sorted(groups.items(), key=lambda item: item[0])]


def _row(found: list[tuple[Path, Record]]) -> Row:
    newest = {r.seed: (p, r) for p, r in sorted(found, key=lambda x: (x[1].status == "ok", x[1].provenance.finished))}
    kept = [newest[seed] for seed in sorted(newest)]
    fine = [record for _, record in kept if record.status == "ok"]
    first = (fine or [kept[0][1]])[0]
    ended = [record.status for _, record in kept if record.status != "ok"]
    scores = [score(record) for record in fine]
    alone = "" if first.method != "none" or "student" in first.scores or "teacher" not in first.scores else " (teacher)"
    return Row(
        task=first.task,
        data=first.dataset.name if first.dataset else "",
        method=first.method + alone,
        augment=_augment(first),
        quant=_with_options(first, "quant"),
        pair=first.pair,
        preset=first.preset,
        metric=first.primary.name if first.primary else None,
        higher_is_better=first.primary.higher_is_better if first.primary else True,
        seeds=tuple(record.seed for record in fine),
        ended={status: ended.count(status) for status in sorted(set(ended))},
        score=Mean.of([value for value, _ in scores]),
        gain=Mean.of([gain for _, gain in scores]),
        command=_command(first.command, sorted(newest)),
        spec_hash=first.spec_hash,
        folders=tuple(str(path) for path, _ in kept),
    )


def _augment(record: Record) -> str:
    taught = [flag.removeprefix(TAUGHT) for flag in record.flags if flag.startswith(TAUGHT)]
    return ", ".join([_with_options(record, "augment"), *(f"teacher {name}" for name in taught)])


def _with_options(record: Record, axis: str) -> str:
    """Returns what was chosen of an axis, with the options of it that the command sets."""
    words = (word.lstrip("+") for word in shlex.split(record.command))
    own = (word.removeprefix(f"{axis}.") for word in words if word.startswith(f"{axis}."))
    return " ".join([getattr(record, axis), *own])


def _command(command: str, seeds: Sequence[int]) -> str:
    """Returns the command of all seeds: a sweep where there are several."""
    if len(seeds) < 2:
        return command
    words = [word for word in shlex.split(command) if not word.startswith("seed=")]
    return " ".join([*words[:3], "-m", *map(shlex.quote, words[3:]), "seed=" + ",".join(map(str, seeds))])


# ---- as text --------------------------------------------------------------------------------------------------------


def worse(gain: float, higher_is_better: bool) -> str:
    """Says of a difference of errors which way it goes: +0.12 looks like a gain."""
    return "" if higher_is_better or gain == 0 else " worse" if gain > 0 else " better"


def _interval(value: Mean, sign: str, digits: int) -> str:
    half = "" if value.half is None else f" ± {value.half:.{digits}f}"
    return f"{value.mean:{sign}.{digits}f}{half}"


def cells(row: Row) -> dict[str, str]:
    """Returns what a table shows of a row, by column; a mean is followed by its 95% interval."""
    digits = decimals(1 if row.score is None else row.score.mean)
    gain = "" if row.gain is None else _interval(row.gain, "+", digits) + worse(row.gain.mean, row.higher_is_better)
    seeds = ["one seed: no interval"] if len(row.seeds) == 1 else [f"{len(row.seeds)} seeds"] * bool(row.seeds)
    return {
        "task": row.task,
        "data": row.data,
        "method": row.method,
        "augment": row.augment,
        "quant": row.quant,
        "pair": row.pair,
        "preset": row.preset,
        "seeds": ", ".join([*seeds, *(f"{count} {status}" for status, count in row.ended.items())]),
        "metric": "" if row.metric is None else row.metric + ("" if row.higher_is_better else " (lower is better)"),
        "score": "" if row.score is None else _interval(row.score, "", digits),
        "Δ scratch": gain,
        "command": row.command,
    }


def table(found: Sequence[Row], title: str, leave_out: Sequence[str] = ()) -> Table:
    """Returns rows as a table; what all of them share stands in its title."""
    shown = [cells(row) for row in found]
    names = [name for name in shown[0] if name not in leave_out]
    alike = ("task", "data", "pair", "preset", "metric", "augment", "quant")
    shared = [n for n in alike if n in names and len({c[n] for c in shown}) == 1]
    result = Table(title=" · ".join([title, *(shown[0][n] for n in shared if shown[0][n] != "none")]))
    for name in names:
        if name not in shared:
            number = name in ("score", "Δ scratch")
            result.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for values in shown:
        result.add_row(*(values[name] for name in names if name not in shared))
    return result
