"""Rows made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from leaderboard.row import NO_METRICS, Interner, Parts, Row, flatten
from tests.records.test_record import make

INTERN = Interner()
BASE = flatten(make().model_copy(update={"content_hash": "c" * 32}), "run.json", INTERN)


def parts(found: Mapping[str, Mapping[str, float | None]]) -> Parts:
    """What is known of several models."""
    return INTERN.join(found, [INTERN(values, values.values()) for values in found.values()])


def scored(row: Row, **found: Mapping[str, float | None] | None) -> Row:
    """The run with other test metrics of some roles; of None it has none."""
    kept = {name: dict(metrics.items()) for name, metrics in zip(*row.scores, strict=True)}
    return replace(row, scores=parts({name: v for name, v in {**kept, **found}.items() if v is not None}))


def row(method: str, seed: int, score: float | None, scratch: float | None = 60.0, **changes: Any) -> Row:
    """One run of a specification that is named after method, pair and tuning; the teacher has 80."""
    trials = changes.pop("trials", 4)
    pair, task = changes.get("pair", "a_b"), changes.get("task", "classification")
    spec = changes.pop("spec_hash", f"{method}-{pair}-{trials}")
    gap = None if score is None or scratch is None else (score - scratch) / (80 - scratch)
    tests = {"student": (score, 10.0 + seed), "scratch": (scratch, 12.0), "teacher": (80.0, 5.0)}
    found = {name: {"accuracy": v, "ece": ece} for name, (v, ece) in tests.items() if v is not None}
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
        "scores": parts(found),
        "gap_closed": gap,
        "gap_reason": None if gap is not None else "no scratch",
        "finished": 1000.0 + seed,
        "tuning": NO_METRICS,
    }
    return replace(BASE, **values | changes)


def failed(method: str, seed: int, status: str = "failed", **changes: Any) -> Row:
    """A run that came to nothing: its record names no data and no metric."""
    nothing: dict[str, Any] = dict.fromkeys(("dataset", "digest", "primary", "higher_is_better", "best_on_val"))
    gone = {"status": status, "reason": "no such tap", "scores": parts({}), "trials": 4}
    return replace(row(method, seed, None, None, **changes), **nothing | gone)


def in_order(rows: list[Row]) -> list[Row]:
    """Sorts as reading does."""
    return sorted(rows, key=lambda r: r.order)
