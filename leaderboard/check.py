"""``python -m leaderboard check PATH [PATH…]``: what a pull request with records must pass."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdbench import config
from kdbench.digest import digest
from kdbench.errors import nearest
from kdbench.record import CONFIG
from leaderboard.boards import lower_is_better
from leaderboard.groups import cell_of
from leaderboard.row import Metrics, Row
from leaderboard.rows import Found, Problem, read

#: Metrics in percent by the words in their names.
_PERCENT = re.compile(
    r"(^|_)(top1|top5|acc|accuracy|class|ece|map|ap|ap50|ap75|miou|iou|dice|f1|precision|recall|auc|r40|r11|all|"
    r"agreement|edit)(_|$)"
)
#: Fields of a row that are never negative.
_COSTS = (
    "seed",
    "trials",
    "factor",
    "train_size",
    "val_size",
    "test_size",
    "epochs",
    "samples_seen",
    "teacher_passes",
    "student_passes",
    "wall_s",
    "peak_rss_mb",
    "added_params",
    "params",
    "macs",
    "bytes",
    "latency_ms",
    "teacher_params",
    "teacher_macs",
    "teacher_bytes",
)
#: Groups of the configuration whose options a record may name. Pairs, data and presets may be somebody's own.
REGISTRY = ("task", "method", "augment", "quant")
#: How far in the future a run may end: clocks differ.
AHEAD = 86_400.0
#: A student that closes the gap a hundred times over is a mistake.
GAP = 100.0


def check(paths: Sequence[Path]) -> tuple[Found, list[Problem]]:
    """Reads the records below ``paths`` and looks for everything that is wrong with them.

    Returns:
        What was found, and all problems by path: those of reading first, then names, ranges and specifications.
    """
    found = read(paths)
    problems = list(found.problems)
    known = {group: config.options(group) for group in REGISTRY}
    for row in found.rows:
        reasons = (*_names(row, known), *_ranges(row), *_config(row))
        problems += (Problem(row.path, reason) for reason in reasons)
    problems += _specs(found.rows)
    return found, sorted(problems, key=lambda problem: problem.path)


def percent(metric: str) -> bool:
    """Tells by its name whether a metric is in percent (a share in 0..1 passes as well)."""
    return _PERCENT.search(metric.lower()) is not None


def _names(row: Row, known: dict[str, list[str]]) -> Iterator[str]:
    for group, options in known.items():
        name = getattr(row, group)
        if name not in options:
            yield f"{group}: there is no {group} {name!r}: {nearest(name, options)}"
    if row.origin != "measured":
        yield f"origin: {row.origin!r}, expected 'measured': reported numbers belong into anchors.csv"


def _ranges(row: Row) -> Iterator[str]:
    for role in ("student", "scratch", "teacher"):
        metrics: Metrics | None = getattr(row, role)
        for name, value in metrics.items() if metrics else ():
            high = 100.0 if percent(name) else float("inf")
            low = 0.0 if percent(name) or lower_is_better(name) else -float("inf")
            if value is not None and not low <= value <= high:
                yield f"scores.{role}.test.{name} is {value:g}, expected {low:g} to {high:g}"
    if row.gap_closed is not None and abs(row.gap_closed) > GAP:
        yield f"gap_closed is {row.gap_closed:g}, expected -{GAP:g} to {GAP:g}"
    for name in _COSTS:
        value = getattr(row, name)
        if value is not None and value < 0:
            yield f"{name} is {value:g}, expected 0 or more"
    if row.finished < row.started:
        yield "provenance: the run ends before it starts"
    if row.finished > time.time() + AHEAD:
        yield "provenance: the run ends in the future"


def _config(row: Row) -> Iterator[str]:
    """The command may hide what a file elsewhere said; ``config.yaml`` has everything, and the record its digest."""
    path = Path(row.path).with_name(CONFIG)
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except OSError:
        yield f"{CONFIG} is not beside it"
        return
    except (ValueError, RecursionError, YAMLError, OmegaConfBaseException):
        yield f"{CONFIG} beside it cannot be read"
        return
    if digest(found) != row.config_digest:
        yield f"{CONFIG} beside it is not that of the run: it was edited"


def _specs(rows: Iterable[Row]) -> Iterator[Problem]:
    """Seeds of one specification differ in the seed alone."""
    for _, same in groupby(rows, key=lambda row: (row.task, row.method, row.spec_hash)):
        first: Row | None = None
        for row in same:
            if not row.ok:
                continue
            first = first or row
            if (cell_of(row), row.primary, row.trials) != (cell_of(first), first.primary, first.trials):
                yield Problem(row.path, f"spec_hash: {first.path} has the same, but other data, names or tuning")
