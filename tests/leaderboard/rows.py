"""Rows made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leaderboard.row import Interner, Row, flatten
from tests.records.test_record import make

INTERN = Interner()
BASE = flatten(make().model_copy(update={"content_hash": "c" * 32}), "run.json", INTERN)


def row(method: str, seed: int, score: float | None, scratch: float | None = 60.0, **changes: Any) -> Row:
    """One run of a specification that is named after method, pair and tuning; the teacher has 80."""
    trials = changes.pop("trials", 4)
    pair, task = changes.get("pair", "a_b"), changes.get("task", "classification")
    spec = changes.pop("spec_hash", f"{method}-{pair}-{trials}")
    gap = None if score is None or scratch is None else (score - scratch) / (80 - scratch)
    values: dict[str, Any] = {
        "path": f"{task}/{spec}/{seed}/run.json",
        "run_id": f"{spec}-{seed}",
        "spec_hash": spec,
        "task": task,
        "method": method,
        "pair": pair,
        "seed": seed,
        "reference": method == "none",
        "trials": 0 if method == "none" else trials,
        "score": score,
        "scratch_score": scratch,
        "teacher_score": 80.0,
        "student": None if score is None else INTERN(("accuracy", "ece"), (score, 10.0 + seed)),
        "scratch": None if scratch is None else INTERN(("accuracy", "ece"), (scratch, 12.0)),
        "teacher": INTERN(("accuracy", "ece"), (80.0, 5.0)),
        "gap_closed": gap,
        "gap_reason": None if gap is not None else "no scratch",
        "finished": 1000.0 + seed,
    }
    return replace(BASE, **values | changes)


def failed(method: str, seed: int, status: str = "failed", **changes: Any) -> Row:
    """A run that came to nothing: its record names no data and no metric."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("dataset", "digest", "primary", "higher_is_better", "student", "scratch", "teacher")
    )
    gone = {"status": status, "reason": "no such tap", "teacher_score": None, "trials": 4, "best_on_val": None}
    return replace(row(method, seed, None, None, **changes), **nothing | gone)


def in_order(rows: list[Row]) -> list[Row]:
    """Sorts as reading does."""
    return sorted(rows, key=lambda r: r.order)
