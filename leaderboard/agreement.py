"""What records must have in common, and what a record must have in common with itself.

A content hash is public: whoever edits a record can hash it anew. What was edited then contradicts something else, the
curves beside it, the trials that chose its factor, or the other runs of the same recipe.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from kdbench.base.digest import digest, without
from kdbench.base.outcomes import LIMIT, OUTCOMES, unpack
from kdbench.errors import KDBenchError
from kdbench.records.record import CONFIG, CURVES, RUN, SPEC_EXCLUDE, TEACHER_SEED
from kdbench.records.schema import Record
from kdbench.runs.tuning import mean
from leaderboard.groups import setting_of
from leaderboard.row import Row
from leaderboard.rows import Problem
from leaderboard.samples import agrees

#: Why a newer run of a seed differs, by the older run's content hash, and why a row vanished, by its spec hash: a
#: mapping to a sentence, beside the records.
CHANGES = "changes.yaml"
#: Metrics that are a share of the test samples, in percent.
SHARES = ("top1", "top5")
#: How far 32-bit floats may be from a whole number of samples, and curves from the record.
NEAR, CLOSE = 2e-3, 1e-5
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Keys that the scratch twin does not read.
_METHOD = ("method", "tuning", *(key for key in SPEC_EXCLUDE if key != "seed"))


def of_itself(row: Row, record: Record) -> Iterator[str]:
    """Yields what contradicts itself in a record and the curves beside it."""
    path = Path(row.path)
    if path.name == RUN and path.parent.name != row.run_id:
        yield f"run_id is {row.run_id!r}, its folder is {path.parent.name!r}"
    yield from _possible(row, record)
    yield from _tuned(row, record)
    yield from _curves(path.with_name(CURVES), record)
    yield from _outcomes(path.with_name(OUTCOMES), record)


def _possible(row: Row, record: Record) -> Iterator[str]:
    for role, scores in record.scores.items():
        for name in SHARES:
            value = scores.test.get(name)
            if value is None or not row.test_size:
                continue
            right = value * row.test_size / 100
            if abs(right - round(right)) > NEAR:
                yield f"scores.{role}.test.{name} is {value:g}, no share of {row.test_size} test samples ({right:.2f})"


def _tuned(row: Row, record: Record) -> Iterator[str]:
    tuning = record.tuning
    if tuning is None or not tuning.scores or row.higher_is_better is None:
        return
    if len(tuning.scores) != tuning.trials:
        yield f"tuning.trials is {tuning.trials}, tuning.scores has {len(tuning.scores)}"
    for factor, scores in (tuning.by_seed or {}).items():
        own, known = tuning.scores.get(factor), mean(scores)
        close = own is not None and known is not None and math.isclose(own, known, rel_tol=1e-9, abs_tol=1e-9)
        if own != known and not close:
            yield f"tuning.scores.{factor} is {own}, the mean of tuning.by_seed is {known}"
    sign = 1 if row.higher_is_better else -1
    found = {factor: sign * value for factor, value in tuning.scores.items() if value is not None}
    if found and str(tuning.factor) not in found and format(tuning.factor, "g") not in found:
        yield f"tuning.factor is {tuning.factor:g}, which no trial had: {', '.join(found)}"
    elif found:
        best = max(found, key=lambda factor: found[factor])  # of several the earliest, as the engine takes it
        if float(best) != tuning.factor:
            yield f"tuning.factor is {tuning.factor:g}, the best of its trials is {best}"


def _curves(path: Path, record: Record) -> Iterator[str]:
    try:
        content = path.read_bytes()
    except OSError:
        if CURVES in (record.files or {}):
            yield f"{CURVES} is not beside it, its digest is in the record"
        return
    expected = (record.files or {}).get(CURVES)
    if expected is not None and expected != sha256(content).hexdigest():
        yield f"{CURVES} beside it is not that of the run: it was edited"
        return
    try:
        lines = list(csv.DictReader(io.StringIO(content.decode("utf-8", "replace"))))
    except csv.Error:
        yield f"{CURVES} beside it cannot be read"
        return
    for name, term in record.terms.items():
        found = [text for line in lines if (text := line.get(f"train/{name}"))]
        if term.last is None or not found:
            continue
        last = _number(found[-1])
        if not math.isclose(last, term.last, rel_tol=CLOSE, abs_tol=CLOSE):
            yield f"terms.{name}.last is {term.last:g}, {CURVES} ends at {last:g}"


def _outcomes(path: Path, record: Record) -> Iterator[str]:
    expected = (record.files or {}).get(OUTCOMES)
    if expected is None or record.primary is None:
        return
    try:
        with path.open("rb") as stream:
            content = stream.read(LIMIT + 1)
        if sha256(content).hexdigest() != expected:
            yield f"{OUTCOMES} beside it is not that of the run: it was edited"
            return
        found = unpack(content)
    except OSError:
        yield f"{OUTCOMES} is not beside it, its digest is in the record"
        return
    except KDBenchError as error:
        yield str(error)
        return
    for name in found.values:
        own, said = found.score(name), record.scores.get(name)
        value = said.test.get(record.primary.name) if said else None
        if not agrees(own, value):
            score = "null" if value is None else f"{value:g}"
            yield f"scores.{name}.test.{record.primary.name} is {score}, {OUTCOMES} gives {own:g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def of_specs(rows: Iterable[Row], changes: Mapping[str, str]) -> Iterator[Problem]:
    """Looks at the seeds of each specification: all of them, alike in all but the seed, none run until it fits.

    Under several teachers all seeds were run under each of them.

    Args:
        rows: Sorted as reading sorts them.
        changes: Why a seed was run again, by the content hash of the older run.
    """
    for _, same in groupby(rows, key=lambda row: (row.task, row.method, row.spec_hash)):
        runs = list(same)
        yield from _alike(runs)
        yield from _whole(runs)
        cells = sorted(runs, key=lambda row: (row.seed, row.teacher_seed, row.finished))
        for _, again in groupby(cells, key=lambda row: (row.seed, row.teacher_seed)):
            yield from _again([row for row in again if row.has_score], changes)


def _whole(runs: Sequence[Row]) -> Iterator[Problem]:
    seeds, teachers = sorted({row.seed for row in runs}), sorted({row.teacher_seed for row in runs})
    for name, found in (("seeds", seeds), ("teacher seeds", teachers)):
        if found != list(range(len(found))):
            said = ", ".join(map(str, found))
            reason = f"{name} are {said}, expected 0 to {len(found) - 1}: none chosen, none left out"
            yield Problem(runs[0].path, reason)
    there = {(row.seed, row.teacher_seed) for row in runs}
    missing = [f"seed={s} teacher.seed={t}" for s in seeds for t in teachers if (s, t) not in there]
    if missing:
        reason = f"{len(seeds)} seeds and {len(teachers)} teachers make {len(seeds) * len(teachers)} runs, expected all"
        yield Problem(runs[0].path, f"{reason}: {len(missing)} are missing, such as {missing[0]}")


def _alike(runs: Sequence[Row]) -> Iterator[Problem]:
    first: Row | None = None
    for row in runs:
        if not row.ok:
            continue
        first = first or row
        if (setting_of(row), row.primary, row.trials) != (setting_of(first), first.primary, first.trials):
            yield Problem(row.path, f"spec_hash: {first.path} has the same, but other data, names or tuning")


def _again(runs: Sequence[Row], changes: Mapping[str, str]) -> Iterator[Problem]:
    for older, newer in zip(runs, runs[1:], strict=False):
        if older.scores != newer.scores and not changes.get(older.content_hash):
            yield Problem(
                newer.path,
                f"{_called(newer)} was run before with other scores ({older.path}): say why in {CHANGES}, "
                f"{older.content_hash}: reason",
            )


def _called(row: Row) -> str:
    return f"seed {row.seed}" + (f" of teacher {row.teacher_seed}" if row.teacher_seed else "")


def reasons(roots: Iterable[Path]) -> tuple[dict[str, str], list[Problem]]:
    """Reads why seeds were run again, from :data:`CHANGES` of each folder of records."""
    found: dict[str, str] = {}
    problems = []
    for root in roots:
        path = root / CHANGES
        if not path.is_file():
            continue
        try:
            said = yaml.safe_load(path.read_bytes())
        except (ValueError, yaml.YAMLError):
            said = "broken"
        if isinstance(said, dict) and all(isinstance(v, str) and v.strip() for v in said.values()):
            found |= {str(key): value for key, value in said.items()}
        elif said is not None:
            problems.append(Problem(str(path), "expected lines of the form content_hash: reason"))
    return found, problems


def of_recipes(rows: Sequence[Row]) -> Iterator[Problem]:
    """Compares what methods share: runs that differ in the method alone have one teacher and one twin of each seed.

    What most of them say holds; of two that differ both are told.
    """
    twins: dict[tuple[str, Hashable], list[tuple[Row, float | None]]] = {}
    for row in rows:
        recipe = _recipe(row) if row.has_score else None
        if recipe is None:
            continue
        alone, together = recipe
        twins.setdefault(("scratch", (row.seed, alone)), []).append((row, row.of("scratch")))
        # A method that takes part in its teacher's training has a teacher of its own.
        if "teacher_privileged" not in row.scores.names:
            twins.setdefault(("teacher", together), []).append((row, row.of("teacher")))
    for (role, _), found in twins.items():
        counts = Counter(score for _, score in found if score is not None)
        if len(counts) < 2:
            continue
        (usual, most), (_, second) = counts.most_common(2)
        said = f"{usual:g}" if most > second else "not agreed on"
        for row, score in found:
            if score is not None and (score != usual or most == second):
                yield Problem(row.path, f"scores.{role} is {score:g}, of the other methods of this recipe it is {said}")


def _recipe(row: Row) -> tuple[Hashable, Hashable] | None:
    """Returns what runs of one scratch twin have in common, and those of one teacher."""
    try:
        config: Any = yaml.load(Path(row.path).with_name(CONFIG).read_bytes(), Loader=_LOADER)
        alone, together = digest(without(config, (*_METHOD, TEACHER_SEED))), digest(without(config, _METHOD))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError, KDBenchError):
        return None  # which check says elsewhere
    where = row.task, row.digest, row.fold, row.cpu, row.gpu
    return (*where, alone), (*where, together)
