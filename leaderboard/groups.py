"""The seeds of one specification joined to a group: means, intervals, gap closed, cost.

:mod:`leaderboard.boards` puts groups that can be compared beside each other; its docstring shows the whole API.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from leaderboard.row import Metrics, Row
from leaderboard.stats import Estimate, columns, estimate, ratio

#: Fewest seeds that a row needs to be ranked.
MINIMUM = 3

Verdict = Literal["better", "worse", "open"]


class Setting(NamedTuple):
    """What two groups must have in common to be compared.

    ``pair`` stands for its networks, ``augment`` and ``quant`` are names with those options that not all rows share.
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


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of the primary metric, in its units: group minus baseline.

    Attributes:
        estimate: Mean with its own interval over the shared seeds; None says ``reason``.
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
        rows: The row that counts of each seed, by seed: the newest with a score, else the newest.
        newest: The newest of these with a score, else the newest.
        superseded: The others.
        seeds: Those that came to a score.
        failed: Seeds without a score because the run failed; ``diverged`` likewise.
        enough: Enough seeds, all by the same code; else the row is grey and has no rank.
        note: Why the row is grey, or None.
        gap: Share of the gap between scratch student and teacher that is closed: a ratio of means over all seeds.
        unranked: Why there is no rank, or None.
        latency: Median over all runs of this network on this machine, from the fastest to the slowest of them.
    """

    setting: Setting
    method: str
    spec_hash: str
    role: str
    reference: bool
    trials: int
    rows: tuple[Row, ...]
    newest: Row
    superseded: tuple[Row, ...]
    seeds: tuple[int, ...]
    failed: int
    diverged: int
    primary: str | None
    higher_is_better: bool
    metrics: Mapping[str, Estimate]
    best_on_val: Estimate | None
    teacher: Estimate | None
    scratch: Estimate | None
    converted: Estimate | None
    gap: Estimate | None
    gap_reason: str | None
    cost: Cost
    enough: bool
    note: str | None
    vs_scratch: Difference = Difference()
    vs_kd: Difference = Difference()
    rank: tuple[int, int] | None = None
    unranked: str | None = None
    latency: Estimate | None = None

    @property
    def score(self) -> Estimate | None:
        """The primary metric."""
        return self.metrics.get(self.primary) if self.primary else None

    @property
    def metric(self) -> tuple[str | None, bool]:
        """Name and direction of what is scored; two groups that differ in it have no scores to compare."""
        return self.primary, self.higher_is_better

    @property
    def scored(self) -> tuple[Row, ...]:
        """The rows behind the score."""
        return tuple(row for row in self.rows if row.has_score)


def setting_of(row: Row) -> Setting:
    """Returns the setting of a row; a run without a score knows only the names of its configuration."""
    data = (row.dataset or "", row.digest or "", row.fold or "")
    axes = (row.augmenting or row.augment, row.quantising or row.quant)
    return Setting(row.task, row.pairing or row.pair, *data, row.preset, *axes, row.protocol)


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
    kept: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row.has_score, row.finished, row.run_id)):
        kept[row.seed] = row
    chosen = tuple(kept[seed] for seed in sorted(kept))
    scored = [row for row in chosen if row.has_score]
    newest = max(scored or chosen, key=lambda row: (row.finished, row.run_id))
    gap, gap_reason = gap_of(scored, newest)
    counts = Counter(row.status for row in chosen)
    note = _note(scored, minimum)
    return Group(
        setting=setting_of(newest),
        method=newest.method,
        spec_hash=newest.spec_hash,
        role=newest.role,
        reference=newest.reference,
        trials=newest.trials,
        rows=chosen,
        newest=newest,
        superseded=tuple(row for row in rows if row is not kept[row.seed]),
        seeds=tuple(row.seed for row in scored),
        failed=counts["failed"],
        diverged=counts["diverged"],
        primary=newest.primary,
        higher_is_better=bool(newest.higher_is_better),
        metrics=summarise([row.main for row in scored]),
        best_on_val=_estimate(row.best_on_val for row in scored),
        teacher=_estimate(row.of("teacher") for row in scored),
        scratch=_estimate(row.of("scratch") for row in scored),
        converted=_estimate(row.of("converted") for row in scored),
        gap=gap,
        gap_reason=gap_reason,
        cost=_cost(scored),
        enough=note is None,
        note=note,
    )


def _note(scored: Sequence[Row], minimum: int) -> str | None:
    revisions = len({row.code_digest for row in scored})
    if len(scored) < minimum:
        return f"{len(scored)} of at least {minimum} seeds"
    return f"seeds of {revisions} code revisions" if revisions > 1 else None


def gap_of(scored: Sequence[Row], model: Row) -> tuple[Estimate | None, str | None]:
    """Returns the share of the gap that is closed, of all seeds, and why there is none or of which seeds it is.

    It is the ratio of means: student - scratch over teacher - scratch, each over the same seeds. Whether there is a gap
    to close at all is a matter of the setting, which :mod:`leaderboard.boards` decides.
    """
    if model.reference:
        return None, "the student was trained alone"
    above, below = gains(scored)
    if not above:
        return None, "no scratch twin" if any(row.of("teacher") is not None for row in scored) else "no teacher"
    found = ratio(above, below)
    missing = len(scored) - len(above)
    if found is None:
        return None, "teacher and scratch student score alike"
    return found, f"{missing} of {len(scored)} seeds have no scratch twin or no teacher" if missing else None


def gains(scored: Iterable[Row]) -> tuple[list[float], list[float]]:
    """Returns student - scratch and teacher - scratch of every seed that has all three."""
    above, below = [], []
    for row in scored:
        alone, teacher = row.of("scratch"), row.of("teacher")
        if row.score is not None and alone is not None and teacher is not None:
            above.append(row.score - alone)
            below.append(teacher - alone)
    return above, below


def _estimate(values: Iterable[float | None]) -> Estimate | None:
    return estimate([value for value in values if value is not None])


def summarise(found: Sequence[Metrics | None]) -> dict[str, Estimate]:
    """Estimates every metric over runs; a run without a metric does not count for it."""
    have = [metrics for metrics in found if metrics is not None]
    if not have:
        return {}
    names = have[0].names
    if all(metrics.names is names for metrics in have):
        return _named(names, np.array([metrics.values for metrics in have]))
    names = tuple(dict.fromkeys(name for metrics in have for name in metrics.names))
    values = [[np.nan if (v := metrics.get(name)) is None else v for name in names] for metrics in have]
    return _named(names, np.array(values))


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, Estimate]:
    return {name: found for name, found in zip(names, columns(values), strict=True) if found is not None}


def _cost(rows: Sequence[Row]) -> Cost:
    medians = {}
    for name in Cost.__dataclass_fields__:
        values = [value for row in rows if (value := row.figure(name)) is not None]
        medians[name] = float(statistics.median(values)) if values else None
    return Cost(**medians)
