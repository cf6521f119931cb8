"""Groups that can be compared, side by side: differences to the baselines, ranks, and what a table shows.

The API that the pages are built on::

    found = build(read(roots).rows, minimum=3) # -> Boards
    found.tasks         # dict[str, list[Board]]: every task's boards, the one to show first in front
    found.failures      # list[Group]: specifications of which no seed came to a score (score None; reasons in rows)
    found.teachers      # list[Group]: teachers that were trained alone (method=none role=teacher)
    board.setting          # Setting(task, pair, dataset, digest, fold, preset, augment, quant, protocol)
    board.groups        # list[Group], best first; board.primary, board.higher_is_better, board.metrics (names)
    board.teacher       # dict[str, float]: the teacher's test metrics; board.scratch: dict[str, Estimate] over seeds
    board.metric == group.metric    # False: the group is scored by another metric, and the board shows no score of it
    group.score         # Estimate(n, mean, sd, low, high) of the primary metric; group.metrics: the same for each
    group.gap, group.gap_reason     # share of the gap closed (Estimate or None), and why it is None or partial
    group.vs_scratch, group.vs_kd   # Difference(estimate, verdict, reason, partner): paired over shared seeds
    group.rank          # (best, worst) place among the groups that it can be compared with, or None: group.unranked
    group.enough        # False: fewer seeds than `minimum` or of several codes: the row is grey, group.note says why
    group.reference     # True: the student trained alone (no method)
    group.rows          # the row that counts of each seed; group.superseded: the older ones; group.newest
    group.cost          # Cost: medians over seeds
    lower_is_better(name)           # direction of a metric that is not the primary one

Reported numbers (:mod:`leaderboard.anchors`) never come near these: they have no group and no rank. What joins boards
to one figure per method is in :mod:`leaderboard.across`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from leaderboard.groups import MINIMUM, Difference, Group, Setting, group, summarise
from leaderboard.row import Row
from leaderboard.stats import Estimate, paired, places

#: The method that every other one is compared with, tuned with as many trials.
BASELINE = "kd"
#: Presets that are for trying the code: shown, but never in front.
TRIALS = frozenset({"smoke"})

_LOWER = re.compile(
    r"(^|_)(loss|nll|ece|mce|brier|error|err|mae|mse|rmse|mape|hd|hd95|assd|fpr|fnr|fid|kid|ade|fde|epe|mr|mpjpe|"
    r"perplexity|distance|latency|wer|cer|flops|disagreement|kl|churn)(_|$)"
)


@dataclass(frozen=True, slots=True)
class Board:
    """The groups of one setting, best first.

    Attributes:
        metrics: Names of the test metrics, the primary one first.
        teacher: Test metrics of the newest run's teacher; ``teachers`` counts the different ones in the records.
        scratch: Test metrics of the student trained alone, over the seeds of one recipe: that of the reference, else
            of the baseline, else of most seeds.
        twins: Different scratch students of one seed in the records, at most; several are of several recipes.
    """

    setting: Setting
    primary: str
    higher_is_better: bool
    metrics: tuple[str, ...]
    groups: tuple[Group, ...]
    teacher: Mapping[str, float | None]
    teachers: int
    scratch: Mapping[str, Estimate]
    twins: int

    @property
    def metric(self) -> tuple[str, bool]:
        """Name and direction of the primary metric."""
        return self.primary, self.higher_is_better


@dataclass(frozen=True, slots=True)
class Boards:
    """Everything that was measured."""

    boards: list[Board] = field(default_factory=list)
    failures: list[Group] = field(default_factory=list)
    teachers: list[Group] = field(default_factory=list)

    @property
    def tasks(self) -> dict[str, list[Board]]:
        """Boards by task, names sorted; each task's list begins with the board to show first."""
        return {task: list(found) for task, found in groupby(self.boards, key=lambda board: board.setting.task)}


def lower_is_better(metric: str) -> bool:
    """Tells the direction of a metric by the words in its name; records know only that of the primary one."""
    return _LOWER.search(metric.lower()) is not None


def build(rows: Iterable[Row], minimum: int = MINIMUM, baseline: str = BASELINE) -> Boards:
    """Joins rows to groups and boards.

    Args:
        rows: Sorted as :func:`leaderboard.rows.read` returns them.
        minimum: Fewest seeds of a row that is not grey and has a rank.
        baseline: The method of ``vs_kd``.
    """
    found = Boards()
    settings: dict[Setting, list[Group]] = {}
    for _, same in groupby(rows, key=lambda row: (row.task, row.method, row.spec_hash)):
        for one in group(list(same), minimum):
            if not one.seeds:
                found.failures.append(one)
            elif one.role == "teacher":
                found.teachers.append(one)
            else:
                settings.setdefault(one.setting, []).append(one)
    found.boards.extend(_board(setting, groups, baseline) for setting, groups in settings.items())
    found.boards.sort(key=_in_front)
    return found


def _in_front(board: Board) -> tuple[object, ...]:
    enough = sum(g.enough for g in board.groups)
    newest = max(g.newest.finished for g in board.groups)
    return board.setting.task, board.setting.preset in TRIALS, -enough, -len(board.groups), -newest, board.setting


def _board(setting: Setting, groups: list[Group], baseline: str) -> Board:
    baselines = [g for g in groups if g.method == baseline]
    groups = [replace(g, vs_scratch=_versus_scratch(g), vs_kd=_versus(g, baselines, baseline)) for g in groups]
    # Records are from strangers: the metric is what most groups say.
    metrics = Counter((g.primary, g.higher_is_better) for g in groups if g.primary)
    lead = max(groups, key=lambda g: (g.reference, g.method == baseline, len(g.seeds), g.newest.finished, g.spec_hash))
    (primary, higher_is_better), _ = min(metrics.items(), key=lambda item: (-item[1], item[0]))
    sign = -1.0 if higher_is_better else 1.0
    ranked = _ranked(groups, primary, higher_is_better)

    def place(g: Group) -> tuple[float, str, str]:
        shown = g.score if g.metric == (primary, higher_is_better) else None
        return sign * shown.mean if shown else np.inf, g.method, g.spec_hash

    ranked.sort(key=place)
    names = dict.fromkeys([primary, *(name for g in ranked for name in g.metrics)])
    teachers = [row for g in groups for row in g.scored if "teacher" in row.scores.names]
    teacher = max(teachers, key=lambda row: (row.finished, row.run_id)).scores.get("teacher") if teachers else None
    twins = {(row.seed, row.of("scratch")) for g in groups for row in g.scored if row.of("scratch") is not None}
    return Board(
        setting=setting,
        primary=primary,
        higher_is_better=higher_is_better,
        metrics=tuple(names),
        groups=tuple(ranked),
        teacher=dict(teacher.items()) if teacher else {},
        teachers=len({row.of("teacher") for row in teachers}),
        scratch=summarise([row.scores.get("scratch") for row in lead.scored]),
        twins=max(Counter(seed for seed, _ in twins).values(), default=0),
    )


def _ranked(groups: list[Group], primary: str, higher_is_better: bool) -> list[Group]:
    """Gives places to groups of equal tuning; the rest learns why it has none."""
    by_trials: dict[int, list[Group]] = {}
    done = []
    for g in groups:
        reason = _unranked(g, primary, higher_is_better)
        if reason:
            done.append(replace(g, unranked=reason))
        else:
            by_trials.setdefault(g.trials, []).append(g)
    for same in by_trials.values():
        scores = [g.score for g in same if g.score is not None]
        found = places(scores, higher_is_better)
        done += [replace(g, rank=place) for g, place in zip(same, found, strict=True)]
    return done


def _unranked(g: Group, primary: str, higher_is_better: bool) -> str | None:
    if g.reference:
        return "the student was trained alone"
    if g.newest.origin != "measured":
        return f"its numbers are {g.newest.origin}, not measured"
    if g.metric != (primary, higher_is_better):
        return f"it has no {primary}"
    return g.note


def _versus_scratch(g: Group) -> Difference:
    if g.reference:
        return Difference(reason="the student was trained alone")
    pairs = [
        (row.score, row.of("scratch")) for row in g.scored if row.score is not None and row.of("scratch") is not None
    ]
    return _difference(pairs, g.higher_is_better) if pairs else Difference(reason="no scratch twin")


def _versus(g: Group, baselines: Sequence[Group], name: str) -> Difference:
    """Compares with the baseline of equal tuning by seeds of the same scratch twin, hence of the same recipe."""
    if g.reference:
        return Difference(reason="the student was trained alone")
    if g.method == name:
        return Difference(reason=f"{name} itself")
    alike = [b for b in baselines if b.trials == g.trials and b.metric == g.metric]
    if not alike:
        tuned = f"with {g.trials} tuning trials" if g.trials else "without tuning"
        return Difference(reason=f"no {name} {tuned} here")
    own = {row.seed: row for row in g.scored}

    def shared(other: Group) -> list[tuple[float | None, float | None]]:
        rows = [(own[row.seed], row) for row in other.scored if row.seed in own]
        return [(a.score, b.score) for a, b in rows if a.of("scratch") == b.of("scratch") is not None]

    partner = max(alike, key=lambda b: (len(shared(b)), b.newest.finished, b.spec_hash))
    pairs = shared(partner)
    if not pairs:
        met = any(row.seed in own for b in alike for row in b.scored)
        return Difference(reason=f"no {name} with the same scratch twins" if met else f"no seed in common with {name}")
    return replace(_difference(pairs, g.higher_is_better), partner=partner.spec_hash)


def _difference(pairs: Sequence[tuple[float | None, float | None]], higher_is_better: bool) -> Difference:
    first, second = np.array(pairs, dtype=float).T
    found = paired(first, second)
    if found is None:
        return Difference(reason="no seed with both scores")
    if not found.excludes(0.0):
        return Difference(found, "open")
    return Difference(found, "better" if (found.mean > 0) == higher_is_better else "worse")
