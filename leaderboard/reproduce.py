"""``python -m leaderboard reproduce PATH [PATH…]``: runs the command of a record again and compares what came out."""

from __future__ import annotations

import io
import os
import random
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import KDBenchError
from kdbench.records.record import find_records, read_record
from kdbench.records.schema import Record
from leaderboard.foreign import foreign
from leaderboard.row import CONTROL, Row
from leaderboard.rows import read
from leaderboard.stats import estimate
from leaderboard.verified import Verdict, Verification

#: Elsewhere than on the machine of the record a score may differ by so many standard deviations of its seeds, or by
#: this share of itself where that is more.
DEVIATIONS, SHARE = 2.0, 0.01
#: Words of a command that say where its owner keeps things.
_OWN = {"results", "cache", "logger", "rerun"}
_ROOT = Path(__file__).resolve().parents[1]


class Values(NamedTuple):
    """Two values of one place in two records."""

    where: str
    before: Any
    after: Any


def choose(paths: Sequence[Path], seed: str | None, draw: random.Random) -> list[Row]:
    """Picks the records below ``paths`` to run: all where they are one, else by seed one of each specification.

    Raises:
        KDBenchError: There is none that came to a score, or there are several and no seed is named.
    """
    rows = [row for row in read(paths).rows if row.has_score]
    if not rows:
        raise KDBenchError(f"{' '.join(map(str, paths))}: no run record with a score here")
    if len(rows) == 1 and seed is None:
        return rows
    if seed is None:
        raise KDBenchError(
            f"{len(rows)} records here: say which by --seed random (one of each specification) or --seed N"
        )
    specs = [list(same) for _, same in groupby(rows, key=lambda row: (row.task, row.method, row.spec_hash))]
    if seed == "random":
        return [draw.choice(same) for same in specs]
    chosen = [row for same in specs for row in same if str(row.seed) == seed]
    if not chosen:
        raise KDBenchError(f"--seed {seed}: not among the seeds here: {sorted({row.seed for row in rows})}, or random")
    return chosen


def reproduce(row: Row, work: Path | None = None, *, current: bool = False) -> Verification:
    """Runs the command of a record in a clean folder, with an empty cache, and compares.

    Args:
        row: Of a record that came to a score.
        work: The folder, which stays; a temporary one by default.
        current: Runs the code of today, not that of the record's commit; that is also what runs where this is no
            checkout that has the commit. What a command leaves to defaults may be something else by now.

    Raises:
        KDBenchError: The command would run foreign code.
    """
    strange = foreign(row.command)
    if strange:
        raise KDBenchError(
            f"{row.path}: its command runs foreign code ({'; '.join(strange)}): read it, and run it yourself"
        )
    before = read_record(Path(row.path))
    if work is not None:
        return _compared(row, before, *_run(row, work, current))
    with tempfile.TemporaryDirectory(prefix="kdbench-reproduce-") as folder:
        return _compared(row, before, *_run(row, Path(folder), current))


def _code(commit: str | None, work: Path) -> Path | None:
    """Takes the code of a commit out of this checkout; None where it does not have it."""
    if commit is None or not re.fullmatch("[0-9a-f]{40}", commit):
        return None
    taken = subprocess.run(["git", "-C", str(_ROOT), "archive", commit], capture_output=True, check=False)
    if taken.returncode:
        return None
    folder = work / "code"
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(taken.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _run(row: Row, work: Path, current: bool) -> tuple[Record | None, str, str | None]:
    words = [w for w in shlex.split(row.command)[3:] if w.partition("=")[0].lstrip("+") not in _OWN]
    results = work / "results"
    command = [sys.executable, "-m", "kdbench", *words, f"results={results}", f"cache={work / 'cache'}"]
    own = None if current else _code(row.commit, work)
    path = os.pathsep.join(filter(None, [str(own or _ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=work,
        env=os.environ | {"PYTHONPATH": path, "WANDB_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = find_records(results)
    if not found:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return None, CONTROL.sub(" ", last)[:400], row.commit if own else None
    made = read_record(found[0])
    return made, "", made.provenance.commit if own is None else row.commit


def _compared(row: Row, before: Record, after: Record | None, error: str, commit: str | None) -> Verification:
    tolerances = _tolerances(row)
    common: dict[str, Any] = {
        "content_hash": row.content_hash,
        "run_id": row.run_id,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if after is None or after.status != "ok":
        said = error or (after.reason if after is not None else "") or "no score"
        return Verification(
            **common,
            verdict="failed",
            largest=None,
            tolerance=tolerances.get(row.role, 0.0),
            alike=False,
            machine="",
            torch="",
            commit=None,
            said=said,
        )
    found = differences(before, after)
    name = before.primary.name if before.primary else ""
    gaps = dict.fromkeys(tolerances, 0.0)
    gaps |= {role: _gap(d) for d in found for role in before.scores if d.where == f"scores.{role}.test.{name}"}
    # The role that is furthest off, measured by what its own seeds differ by.
    worst = max(gaps, key=lambda role: gaps[role] / max(tolerances[role], 1e-12))
    largest, tolerance = gaps[worst], tolerances[worst]
    own, its = after.provenance, before.provenance
    verdict: Verdict = "bitwise" if not found else "within tolerance" if largest <= tolerance else "differs"
    return Verification(
        **common,
        verdict=verdict,
        largest=largest,
        tolerance=tolerance,
        alike=machine(own.hardware) == machine(its.hardware) and own.packages.get("torch") == its.packages.get("torch"),
        machine=machine(own.hardware),
        torch=own.packages.get("torch", "unknown"),
        commit=commit,
        said="; ".join(f"{d.where}: {d.before} before, {d.after} now" for d in found[:5])
        + (f"; {len(found) - 5} more" if len(found) > 5 else ""),
    )


def machine(hardware: Any) -> str:
    """Names the kind of a machine."""
    return f"{hardware.gpu or hardware.cpu}, {hardware.cores} cores"


def differences(before: Record, after: Record) -> list[Values]:
    """Compares what two equal runs have in common: data, networks, trials, every score and every term of the loss."""
    found: list[Values] = []
    pairs: list[tuple[str, Any, Any]] = [
        ("dataset.digest", before.dataset and before.dataset.digest, after.dataset and after.dataset.digest),
        ("tuning", _tuning(before), _tuning(after)),
        *((f"scores.{role}", _plain(s), _plain(after.scores.get(role))) for role, s in before.scores.items()),
        *((f"terms.{name}", _plain(term), _plain(after.terms.get(name))) for name, term in before.terms.items()),
    ]
    for where, first, second in pairs:
        found += _apart(where, first, second)
    return found


def _tuning(record: Record) -> Any:
    return record.tuning and {"factor": record.tuning.factor, "scores": record.tuning.scores}


def _plain(part: Any) -> Any:
    return None if part is None else part.model_dump(mode="json", exclude_none=True)


def _apart(where: str, before: Any, after: Any) -> Iterable[Values]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in before:  # a metric that is new since says nothing of the record
            yield from _apart(f"{where}.{key}", before[key], after.get(key))
    elif before != after:
        yield Values(where, before, after)


def _gap(values: Values) -> float:
    try:
        return abs(float(values.before) - float(values.after))
    except (TypeError, ValueError):
        return float("inf")


def _tolerances(row: Row) -> dict[str, float]:
    """Returns how much the score of each role may differ: by what it differs over the seeds of the specification."""
    folder = Path(row.path).parent.parent
    seeds = [r for r in read([folder]).rows if r.spec_hash == row.spec_hash] if folder.is_dir() else [row]
    found = {}
    for role in row.scores.names:
        own = row.of(role)
        spread = estimate([value for r in seeds if (value := r.of(role)) is not None])
        deviation = DEVIATIONS * spread.sd if spread is not None and spread.sd else 0.0
        found[role] = max(deviation, SHARE * abs(own or 0.0))
    return found
