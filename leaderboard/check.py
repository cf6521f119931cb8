"""``python -m leaderboard check PATH [PATH…]``: what a pull request with records must pass."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from kdbench.base.digest import digest
from kdbench.configuration import config
from kdbench.configuration.network import identity
from kdbench.errors import KDBenchError, nearest
from kdbench.records.record import CONFIG, spec_hash, teacher_of
from kdbench.records.schema import Record
from leaderboard import agreement
from leaderboard.boards import build as join
from leaderboard.boards import lower_is_better
from leaderboard.foreign import TRUSTED, foreign, foreign_targets
from leaderboard.releases import snapshot, vanished
from leaderboard.row import Row
from leaderboard.rows import RECORDS, Found, Problem, full_record, networks_of, read

#: Metrics in percent by the words in their names.
_PERCENT = re.compile(
    r"(^|_)(top1|top5|acc|accuracy|class|ece|map|ap|ap50|ap75|miou|iou|dice|f1|precision|recall|auc|r40|r11|all|"
    r"agreement|edit)(_|$)"
)
#: Fields of a row that are never negative, as no number of its cost and sizes is.
_COUNTS = ("seed", "trials", "factor", "train_size", "val_size", "test_size")
#: Groups of the configuration whose options a record may name. Pairs, data and presets may be somebody's own.
REGISTRY = ("task", "method", "augment", "quant")
#: What the configuration names, beside the seed.
NAMES = (*REGISTRY, "pair", "preset")
#: What a command of the engine says as the record does.
COMMANDED = ("task", "method", "seed")
#: A student that closes the gap a hundred times over is a mistake.
GAP = 100.0


def check(paths: Sequence[Path]) -> tuple[Found, list[Problem]]:
    """Reads the records below ``paths`` and looks for everything that is wrong with them.

    Returns:
        What was found, and all problems by path: those of reading first, then names, ranges, what contradicts the
        configuration and the curves beside the record, then specifications, and what methods of one recipe share.
    """
    found = read(paths)
    problems = list(found.problems)
    known = {group: config.options(group) for group in REGISTRY}
    for row in found.rows:
        record = full_record(row)
        reasons = (
            *_names(row, known),
            *_ranges(row, record),
            *_gap(row),
            *_command(row),
            *_config(row, record),
            *agreement.of_itself(row, record),
        )
        problems += (Problem(row.path, reason) for reason in reasons)
    changes, broken = agreement.reasons(paths)
    if any(Path(path).resolve() == RECORDS for path in paths):
        problems += vanished(snapshot(join(found.rows)), changes)
    problems += [*broken, *agreement.of_specs(found.rows, changes), *agreement.of_recipes(found.rows)]
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
    if row.dirty:
        yield "provenance.dirty is true, expected a run of committed code: commit it and run again with rerun=true"


def _ranges(row: Row, record: Record) -> Iterator[str]:
    for role, scores in record.scores.items():
        for kind in ("test", "best_on_val"):
            for name, value in (getattr(scores, kind, None) or {}).items():
                high = 100.0 if percent(name) else float("inf")
                low = 0.0 if percent(name) or lower_is_better(name) else -float("inf")
                if value is not None and not low <= value <= high:
                    yield f"scores.{role}.{kind}.{name} is {value:g}, expected {low:g} to {high:g}"
    if row.ok and not row.has_score:
        yield f"scores.{row.role}.test.{row.primary} is null, expected a number of a run that is ok"
    counts = {name: getattr(row, name) for name in _COUNTS} | dict(row.cost.items())
    for model, size in zip(row.models.names, row.models.values, strict=True):
        counts |= {f"models.{model}.{name}": value for name, value in size.items()}
    for name, value in counts.items():
        if value is not None and value < 0:
            yield f"{name} is {value:g}, expected 0 or more"
    if row.finished < row.started:
        yield "provenance: the run ends before it starts"


def _gap(row: Row) -> Iterator[str]:
    """The gap closed is that of the scores; where there is none, the record says why."""
    if row.gap_closed is None:
        return
    expected, scratch, teacher = math.nan, row.of("scratch"), row.of("teacher")
    if row.score is not None and scratch is not None and teacher is not None:
        gap = teacher - scratch
        if (gap > 0) if row.higher_is_better else (gap < 0):
            expected = (row.score - scratch) / gap
    if not math.isclose(row.gap_closed, expected, rel_tol=1e-6, abs_tol=1e-9):
        yield f"gap_closed is {row.gap_closed:g}, the scores give {expected:g}"
    elif abs(row.gap_closed) > GAP:
        yield f"gap_closed is {row.gap_closed:g}, expected -{GAP:g} to {GAP:g}"


def _command(row: Row) -> Iterator[str]:
    for said in foreign(row.command):
        yield f"command: {said!r} is foreign code or configuration, expected names of {TRUSTED.name}"
    words = dict(word.lstrip("+").partition("=")[::2] for word in shlex.split(row.command))
    for key in COMMANDED:
        if key in words and getattr(row, key) not in (words[key], _value(words[key])):
            yield f"{key} is {getattr(row, key)!r}, the command says {words[key]!r}"


def _value(word: str) -> Any:
    """Reads a word as YAML, in which +1 and 'kd' are 1 and kd."""
    try:
        return safe_load(word)
    except YAMLError:
        return None


def _config(row: Row, record: Record) -> Iterator[str]:
    """The command may hide what a file elsewhere said; ``config.yaml`` has everything, and the record its digest."""
    path = Path(row.path).with_name(CONFIG)
    try:
        loaded = OmegaConf.load(path)
        plain: Any = OmegaConf.to_container(loaded)
        found = plain if isinstance(plain, dict) else {}
        edited = digest(found) != row.config_digest
        said = {name: OmegaConf.select(loaded, f"{name}.name") for name in NAMES}
        said["seed"] = OmegaConf.select(loaded, "seed")
    except OSError:
        yield f"{CONFIG} is not beside it"
        return
    except (ValueError, RecursionError, YAMLError, OmegaConfBaseException, KDBenchError):
        yield f"{CONFIG} beside it cannot be read"
        return
    if edited:
        yield f"{CONFIG} beside it is not that of the run: it was edited"
        return
    for target in dict.fromkeys(foreign_targets(found)):
        yield f"{CONFIG} names {target!r}, which is not of {TRUSTED.name}: foreign code"
    for name, value in said.items():
        if value != getattr(row, name):
            yield f"{name} is {getattr(row, name)!r}, {CONFIG} says {value!r}"
    # A run that failed has no data in its record.
    if row.digest is not None and spec_hash({**found, "dataset": row.digest}) != row.spec_hash:
        yield f"spec_hash is not that of {CONFIG} and dataset.digest"
    ran = networks_of(Path(row.path))
    if ran and row.networks != identity(ran):
        yield f"networks are {row.networks or 'not named'}, {CONFIG} says {identity(ran)}"
    if record.teacher is not None and record.teacher != teacher_of(found):
        yield f"teacher is not that of {CONFIG}"
