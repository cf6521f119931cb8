"""The seeds of one specification joined to a group: means, intervals, gap closed, cost.

Seeds of the student are one axis of a group and teachers (``teacher.seed``) the other. What counts is a full grid of
both, and intervals are for a fresh draw of both (:mod:`leaderboard.crossed`); of one teacher they are over seeds alone,
conditional on it. Where every run kept what each test sample contributed to its score, intervals are over the test
samples too (:mod:`leaderboard.samples`), else for the test set as it is. Differences are taken within a cell of the
grid: one seed, one teacher. Teachers may have been added by a later revision of the code or on another machine, which
then is part of how much they differ; the seeds of one teacher may not.

:mod:`leaderboard.boards` puts groups that can be compared beside each other; its docstring shows the whole API.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from leaderboard import samples
from leaderboard.crossed import Draws, largest, together
from leaderboard.row import Metrics, Row
from leaderboard.stats import Cell, Estimate, Floats, columns, grid, ratio

#: Fewest seeds that a row needs to be ranked.
MINIMUM = 3

#: What a record calls the student that was trained alone for as much compute as the distilled one.
MATCHED = "scratch_matched"

Verdict = Literal["better", "worse", "open"]


class Setting(NamedTuple):
    """What two groups must have in common to be compared.

    ``pair`` stands for its networks, ``augment`` and ``quant`` are names with those options that not all rows share,
    and ``teacher`` is how the teacher was made where that is not alike in all of them.
    """

    task: str
    pair: str
    dataset: str
    digest: str
    fold: str
    preset: str
    augment: str
    quant: str
    protocol: str
    teacher: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of the primary metric, in its units: group minus baseline.

    Attributes:
        estimate: Mean with its own interval over the shared seeds and teachers; None says ``reason``.
        verdict: ``better`` or ``worse`` where that survives the correction for all that the table compares, else
            ``open``; in the direction of the metric.
        p: Two-sided, of the paired t-test alone; ``corrected`` for ``family`` comparisons, None for a single seed.
        reason: Why there is no estimate.
        partner: ``spec_hash`` of the group that was compared with.
    """

    estimate: Estimate | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    partner: str | None = None
    p: float | None = None
    corrected: float | None = None
    family: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the seeds; None where no record has the value. Units as in :class:`leaderboard.rows.Row`."""

    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    packed_bytes: float | None = None
    coded_bytes: float | None = None
    bits: float | None = None
    epochs: float | None = None
    samples_seen: float | None = None
    student_passes: float | None = None
    teacher_passes: float | None = None
    wall_s: float | None = None
    added_params: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The seeds of one specification.

    Attributes:
        setting: What it is compared within.
        method: Name.
        spec_hash: What its seeds have in common.
        role: ``student`` or ``teacher``.
        reference: The student was trained alone.
        trials: Tuning trials; 0 is untuned.
        rows: The row of each seed and teacher, sorted by them: the newest with a score, else the newest.
        scored: The rows behind the score: every seed under every teacher, sorted by seed, then by teacher.
        newest: The newest of those with a score, else the newest.
        superseded: The others.
        seeds: Those that came to a score under all of ``teachers``; all estimates are over these alone.
        teachers: The ``teacher.seed`` of each teacher.
        failed: Runs without a score because they failed; ``diverged`` likewise.
        enough: Enough seeds, all of a teacher by the same code; else the row is grey and has no rank.
        note: Why the row is grey, or None.
        matched: The student trained alone for as much compute, where every run has it.
        gap: Share of the gap between scratch student and teacher that is closed: a ratio of means over all seeds.
        unranked: Why there is no rank, or None.
        latency: Median over all runs of this network on this machine, from the fastest to the slowest of them.
        trial_spread: Standard deviation of one tuning trial in this setting, where a row was tuned under several seeds.
        trial_note: That it was tuned under other seeds than most rows of the setting.
    """

    setting: Setting
    method: str
    spec_hash: str
    role: str
    reference: bool
    trials: int
    rows: tuple[Row, ...]
    scored: tuple[Row, ...]
    newest: Row
    superseded: tuple[Row, ...]
    seeds: tuple[int, ...]
    teachers: tuple[int, ...]
    failed: int
    diverged: int
    primary: str | None
    higher_is_better: bool
    metrics: Mapping[str, Estimate]
    best_on_val: Estimate | None
    teacher: Estimate | None
    scratch: Estimate | None
    converted: Estimate | None
    matched: Estimate | None
    gap: Estimate | None
    gap_reason: str | None
    cost: Cost
    enough: bool
    note: str | None
    vs_scratch: Difference = Difference()
    vs_kd: Difference = Difference()
    vs_matched: Difference = Difference()
    rank: tuple[int, int] | None = None
    unranked: str | None = None
    latency: Estimate | None = None
    trial_spread: float | None = None
    trial_note: str | None = None

    @property
    def score(self) -> Estimate | None:
        """The primary metric."""
        return self.metrics.get(self.primary) if self.primary else None

    @property
    def metric(self) -> tuple[str | None, bool]:
        """Name and direction of what is scored; two groups that differ in it have no scores to compare."""
        return self.primary, self.higher_is_better

    @property
    def outside(self) -> int:
        """How many runs with a score are no part of the full grid."""
        return sum(row.has_score for row in self.rows) - len(self.seeds) * len(self.teachers)

    def over(self, take: Callable[[Row], float | None]) -> Floats:
        """Returns a number of every run behind the score, ``(seeds, teachers)``; nan where it has none."""
        return _over(self.scored, len(self.teachers), take)

    def drawn(self, role: str | None = None) -> Draws | None:
        """Returns the score of every run, or of a role beside it, under draws of the test samples, where it is kept."""
        return samples.drawn(self.scored, len(self.teachers), role)

    @property
    def cell(self) -> Cell:
        """Student - scratch and teacher - scratch of every seed that has all three: what the gap closed is of."""
        return cell_of(self.scored, len(self.teachers))


def setting_of(row: Row) -> Setting:
    """Returns the setting of a row; a run without a score knows only the names of its configuration."""
    data = (row.dataset or "", row.digest or "", row.fold or "")
    axes = (row.augmenting or row.augment, row.quantising or row.quant)
    return Setting(row.task, row.pairing or row.pair, *data, row.preset, *axes, row.protocol, row.teaching)


def group(rows: Sequence[Row], minimum: int = MINIMUM) -> list[Group]:
    """Joins the rows of one specification.

    Args:
        rows: Of one task, method and spec hash.
        minimum: Fewest seeds of a row that is not grey.

    Returns:
        One group, unless records of one hash name different data or metrics.
    """
    scored: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.ok:
            scored.setdefault((setting_of(row), row.role, row.primary, row.trials), []).append(row)
    lost = [row for row in rows if not row.ok]
    if not scored:
        return [_group(lost, minimum)]
    first, *others = scored.values()
    return [_group(lost + first, minimum), *(_group(other, minimum) for other in others)]


def _group(rows: list[Row], minimum: int) -> Group:
    kept: dict[tuple[int, int], Row] = {}
    for row in sorted(rows, key=lambda row: (row.has_score, row.finished, row.run_id)):
        kept[row.seed, row.teacher_seed] = row
    chosen = tuple(kept[cell] for cell in sorted(kept))
    seeds, teachers = largest((cell for cell, row in kept.items() if row.has_score), minimum)
    scored = [kept[seed, teacher] for seed in seeds for teacher in teachers]
    newest = max(scored or chosen, key=lambda row: (row.finished, row.run_id))
    many = len(teachers)

    beside = _beside(scored, many)
    gap, gap_reason = gap_of(scored, many, newest)
    counts = Counter(row.status for row in chosen)
    metrics = summarise([row.main for row in scored], many)
    drawn = samples.drawn(scored, many)
    own = grid(_over(scored, many, lambda row: row.score), drawn=drawn) if drawn is not None else None
    if own is not None and newest.primary:
        metrics[newest.primary] = own
    note = _note(scored, len(seeds), minimum)
    return Group(
        setting=setting_of(newest),
        method=newest.method,
        spec_hash=newest.spec_hash,
        role=newest.role,
        reference=newest.reference,
        trials=newest.trials,
        rows=chosen,
        scored=tuple(scored),
        newest=newest,
        superseded=tuple(row for row in rows if row is not kept[row.seed, row.teacher_seed]),
        seeds=seeds,
        teachers=teachers,
        failed=counts["failed"],
        diverged=counts["diverged"],
        primary=newest.primary,
        higher_is_better=bool(newest.higher_is_better),
        metrics=metrics,
        best_on_val=beside["best_on_val"],
        teacher=beside["teacher"],
        scratch=beside["scratch"],
        converted=beside["converted"],
        matched=beside[MATCHED],
        gap=gap,
        gap_reason=gap_reason,
        cost=_cost(scored),
        enough=note is None,
        note=note,
    )


#: Roles whose primary metric stands beside the score.
_ROLES = ("teacher", "scratch", "converted", MATCHED)


def _beside(scored: Sequence[Row], teachers: int) -> dict[str, Estimate | None]:
    """Estimates the primary metric of each of :data:`_ROLES` and of ``best_on_val``."""
    values = [[row.best_on_val, *map(row.of, _ROLES)] for row in scored]
    names = ("best_on_val", *_ROLES)
    array = np.array(values, dtype=float).reshape(-1, len(names))
    if teachers < 2 and not any(row.outcomes for row in scored):
        return dict(zip(names, columns(array), strict=True))
    found = {}
    for name, column in zip(names, array.T, strict=True):
        drawn = samples.drawn(scored, teachers, name) if name != "best_on_val" else None
        found[name] = grid(column.reshape(-1, max(1, teachers)), drawn=drawn)
    return found


def _over(scored: Sequence[Row], teachers: int, take: Callable[[Row], float | None]) -> Floats:
    values = [np.nan if (value := take(row)) is None else value for row in scored]
    return np.array(values, dtype=float).reshape(-1, max(1, teachers))


def _note(scored: Sequence[Row], seeds: int, minimum: int) -> str | None:
    if seeds < minimum:
        return f"{seeds} of at least {minimum} seeds"
    codes: dict[int, set[str]] = {}
    for row in scored:
        codes.setdefault(row.teacher_seed, set()).add(row.code_digest)
    revisions = max(map(len, codes.values()))
    return f"seeds of {revisions} code revisions" if revisions > 1 else None


def gap_of(scored: Sequence[Row], teachers: int, model: Row) -> tuple[Estimate | None, str | None]:
    """Returns the share of the gap that is closed, of all seeds, and why there is none or of which seeds it is.

    It is the ratio of means: student - scratch over teacher - scratch, each over the same seeds. Whether there is a gap
    to close at all is a matter of the setting, which :mod:`leaderboard.boards` decides.
    """
    if model.reference:
        return None, "the student was trained alone"
    cell = cell_of(scored, teachers)
    count = len(np.asarray(cell.above))
    if not count:
        return None, "no scratch twin" if any(row.of("teacher") is not None for row in scored) else "no teacher"
    found = ratio(cell.above, cell.below, drawn=cell.drawn)
    missing = len(scored) // max(1, teachers) - count
    if found is None:
        return None, "teacher and scratch student score alike"
    seeds = missing + count
    return found, f"{missing} of {seeds} seeds have no scratch twin or no teacher" if missing else None


def cell_of(scored: Sequence[Row], teachers: int = 1) -> Cell:
    """Returns student - scratch and teacher - scratch, ``(seeds, teachers)``, of every seed that has all three."""
    own, alone, teacher = (
        _over(scored, teachers, take)
        for take in (lambda r: r.score, lambda r: r.of("scratch"), lambda r: r.of("teacher"))
    )
    above, below = own - alone, teacher - alone
    kept = (np.isfinite(above) & np.isfinite(below)).all(axis=1)
    drawn = together(samples.drawn(scored, teachers, role) for role in (None, "scratch", "teacher"))
    if drawn is None or not kept.all():
        return Cell(above[kept], below[kept])
    student, scratch, taught = drawn
    return Cell(above, below, (student.minus(scratch), taught.minus(scratch)))


def summarise(found: Sequence[Metrics | None], teachers: int = 1) -> dict[str, Estimate]:
    """Estimates every metric over runs; a run without a metric does not count for it.

    Args:
        found: Sorted by seed, then by teacher.
        teachers: How many each seed has.
    """
    have = [metrics for metrics in found if metrics is not None]
    if not have:
        return {}
    names = have[0].names
    if len(have) == len(found) and all(metrics.names is names for metrics in have):
        return _named(names, np.array([metrics.values for metrics in have]), teachers)
    names = tuple(dict.fromkeys(name for metrics in have for name in metrics.names))
    rows = [dict(metrics.items()) if metrics is not None else {} for metrics in found]
    values = [[np.nan if (v := row.get(name)) is None else v for name in names] for row in rows]
    return _named(names, np.array(values), teachers)


def _named(names: Sequence[str], values: Floats, teachers: int) -> dict[str, Estimate]:
    estimates = columns(values) if teachers < 2 else [grid(column.reshape(-1, teachers)) for column in values.T]
    return {name: found for name, found in zip(names, estimates, strict=True) if found is not None}


def _cost(rows: Sequence[Row]) -> Cost:
    medians = {}
    for name in Cost.__dataclass_fields__:
        values = [value for row in rows if (value := row.figure(name)) is not None]
        medians[name] = float(statistics.median(values)) if values else None
    return Cost(**medians)
