"""``python -m leaderboard release NAME``: what the board held on a day, and a log of what changed since the one before.

A release is ``leaderboard/releases/NAME.json``: every specification with the content hash of each seed that counts and
the mean of its score. :data:`LOG` beside it says in words what was added, what changed and what vanished, and why. What
vanishes without a reason (in ``changes.yaml`` of the records, by its spec hash) is a problem that ``check`` tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.base.store import write_atomic
from kdbench.errors import KDBenchError
from leaderboard.boards import Boards
from leaderboard.row import Row
from leaderboard.rows import Problem

#: Those of the package, the log among them.
RELEASES = Path(__file__).resolve().parent / "releases"
LOG = "CHANGES.md"

#: By spec hash: task, method, setting, score (mean over seeds) and seeds (content hash by seed).
Snapshot = dict[str, dict[str, Any]]


class Changes(NamedTuple):
    """Spec hashes by what became of them between two releases."""

    added: list[str]
    changed: list[str]
    vanished: list[str]


def snapshot(boards: Boards) -> Snapshot:
    """Lists every specification with a score."""
    groups = [*(g for board in boards.boards for g in board.groups), *boards.teachers]
    return {
        g.spec_hash: {
            "task": g.setting.task,
            "method": g.method,
            "setting": " · ".join(filter(None, (g.setting.pair, g.setting.dataset, g.setting.fold, g.setting.preset))),
            "metric": g.primary,
            "score": None if g.score is None else g.score.mean,
            "seeds": {_cell(row): row.content_hash for row in g.scored},
        }
        for g in sorted(groups, key=lambda g: (g.setting.task, g.method, g.spec_hash))
    }


def _cell(row: Row) -> str:
    return f"{row.seed}, teacher {row.teacher_seed}" if row.teacher_seed else str(row.seed)


def compare(before: Snapshot, now: Snapshot) -> Changes:
    """Compares two releases; more seeds are a change, as other ones are."""
    return Changes(
        added=[spec for spec in now if spec not in before],
        changed=[spec for spec in now if spec in before and now[spec]["seeds"] != before[spec]["seeds"]],
        vanished=[spec for spec in before if spec not in now],
    )


def newest(folder: Path = RELEASES) -> tuple[str, Snapshot] | None:
    """Reads the release that was written last, by the order in the log.

    Raises:
        KDBenchError: It is named in the log and cannot be read.
    """
    log = folder / LOG
    names = re.findall(r"^## (\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE) if log.is_file() else []
    if not names:
        return None
    path = folder / f"{names[0]}.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KDBenchError(f"{path}: {LOG} names this release, and it cannot be read ({error})") from None
    return names[0], found


def release(name: str, now: Snapshot, reasons: Mapping[str, str], folder: Path = RELEASES) -> Changes:
    """Writes a release and its entry in the log.

    Args:
        name: Of its file: letters, digits, points, dashes.
        now: What the board holds.
        reasons: Why specifications vanished, by spec hash.
        folder: Where releases are.

    Raises:
        KDBenchError: The name is taken or none, or something vanished without a reason.
    """
    path = folder / f"{name}.json"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,60}", name) or path.exists():
        raise KDBenchError(f"release {name!r}: expected a new name of letters, digits, points and dashes")
    earlier = newest(folder)
    before = earlier[1] if earlier else {}
    changes = compare(before, now)
    silent = [spec for spec in changes.vanished if not reasons.get(spec)]
    if silent:
        raise KDBenchError(
            f"{_named(before, silent[0])} vanished since {earlier[0] if earlier else ''} ({len(silent)} rows in all): "
            f"say why in changes.yaml of the records, {silent[0]}: reason"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(now, indent=1) + "\n")
    log = folder / LOG
    old = log.read_text(encoding="utf-8").partition("\n\n")[2] if log.is_file() else ""
    write_atomic(log, f"{_HEAD}\n\n{_entry(name, before, now, changes, reasons)}\n{old}".rstrip() + "\n")
    return changes


_HEAD = "# Releases of the board, the newest first; rows are specifications"


def _entry(name: str, before: Snapshot, now: Snapshot, changes: Changes, reasons: Mapping[str, str]) -> str:
    lines = [f"## {name}", "", f"{len(now)} rows, {sum(len(row['seeds']) for row in now.values())} runs."]
    for title, specs, known in (
        ("Added", changes.added, now),
        ("Changed", changes.changed, now),
        ("Vanished", changes.vanished, before),
    ):
        if not specs:
            continue
        lines += ["", f"{title}:", ""]
        for spec in specs:
            why = f": {' '.join(reasons[spec].split())}" if title == "Vanished" else ""
            score = f", {known[spec]['metric']} {known[spec]['score']:.2f}" if title != "Vanished" else ""
            lines.append(f"- {_named(known, spec)}, {len(known[spec]['seeds'])} seeds{score}{why}")
    return "\n".join(lines) + "\n"


def _named(known: Snapshot, spec: str) -> str:
    return f"{known[spec]['task']} {known[spec]['method']} ({known[spec]['setting']}, `{spec[:10]}`)"


def vanished(now: Snapshot, reasons: Mapping[str, str], folder: Path = RELEASES) -> Iterable[Problem]:
    """Yields the rows of the newest release that are gone without a reason."""
    earlier = newest(folder)
    if earlier is None:
        return
    name, before = earlier
    for spec in compare(before, now).vanished:
        if not reasons.get(spec):
            said = f"{_named(before, spec)} was in release {name} and is gone: say why in changes.yaml, {spec}: reason"
            yield Problem(str(folder / f"{name}.json"), said)
