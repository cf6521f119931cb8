"""Groups that can be compared, side by side: differences to the baselines, ranks, and what a table shows.

The API that the pages are built on::

    found = build(read(roots).rows, minimum=3) # -> Boards
    found.tasks         # dict[str, list[Board]]: every task's boards, the one to show first in front
    found.failures      # list[Group]: specifications of which no seed came to a score (score None; reasons in rows)
    found.teachers      # list[Group]: teachers that were trained alone (method=none role=teacher)
    board.setting       # Setting(task, pair, dataset, digest, fold, preset, augment, quant, protocol, teacher)
    board.groups        # list[Group], best first; board.primary, board.higher_is_better, board.metrics (names)
    board.teacher       # dict[str, float]: the teacher's test metrics; board.scratch: dict[str, Estimate] over seeds
    board.metric == group.metric    # False: the group is scored by another metric, and the board shows no score of it
    group.score         # Estimate(n, mean, sd, low, high) of the primary metric; group.metrics: the same for each
    group.gap, group.gap_reason     # share of the gap closed (Estimate or None), and why it is None or partial
    group.vs_scratch, group.vs_kd   # Difference(estimate, verdict, reason, partner, p, corrected, family): paired
    group.rank          # (best, worst) place among the groups that it can be compared with, or None: group.unranked
    group.enough        # False: fewer seeds than `minimum` or of several codes: the row is grey, group.note says why
    group.reference     # True: the student trained alone (no method)
    group.rows          # the row of each seed and teacher; group.superseded: the older ones; group.newest
    group.scored        # the rows behind every estimate: group.seeds x group.teachers, sorted
    group.cost          # Cost: medians over seeds
    lower_is_better(name), directed(name)   # direction of a metric that is not the primary one, if it has one

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

from leaderboard.costs import student_passes
from leaderboard.crossed import Draws, largest, together
from leaderboard.families import Families, cells_of, draws, scores
from leaderboard.groups import MATCHED, MINIMUM, Difference, Group, Setting, Verdict, group, summarise
from leaderboard.row import Row, no_collection
from leaderboard.stats import LEVEL, Contrast, Estimate, Floats, estimate, grid, holm, paired, paired_p

#: The method that every other one is compared with, tuned with as many trials.
BASELINE = "kd"
#: Presets that are for trying the code: shown, but never in front.
TRIALS = frozenset({"smoke"})
_ALONE = "the student was trained alone"

_LOWER = re.compile(
    r"(^|_)(loss|nll|ece|mce|brier|error|err|mae|mse|rmse|mape|hd|hd95|assd|fpr|fnr|fid|kid|ade|fde|epe|mr|mpjpe|"
    r"perplexity|distance|latency|wer|cer|flops|disagreement|kl|churn)(_|$)"
)
_NEITHER = re.compile(r"(^|_)(temperature|threshold|entropy|confidence)(_|$)")


@dataclass(frozen=True, slots=True)
class Board:
    """The groups of one setting, best first.

    Attributes:
        metrics: Names of the test metrics, the primary one first.
        teacher: Test metrics of the teacher of the newest run, of several ``teacher.seed`` their mean; ``teachers``
            counts the different ones in the records.
        teacher_seeds: Every ``teacher.seed`` that a group has.
        scratch: Test metrics of the student trained alone, over the seeds of one recipe: that of the reference, else
            of the baseline, else of most seeds.
        twins: Different scratch students of one seed in the records, at most; several are of several recipes.
        headroom: What the teacher is better by than the scratch student, over the different pairs of them that most
            rows have.
        twin_passes: Forward passes of the whole training of the student alone; the baseline trains as long.
    """

    setting: Setting
    primary: str
    higher_is_better: bool
    metrics: tuple[str, ...]
    groups: tuple[Group, ...]
    teacher: Mapping[str, float | None]
    teachers: int
    teacher_seeds: tuple[int, ...]
    scratch: Mapping[str, Estimate]
    twins: int
    headroom: Estimate | None = None
    twin_passes: float | None = None

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


def directed(metric: str) -> bool:
    """Tells whether more or less of a metric is better at all: a calibrated temperature is neither."""
    return _NEITHER.search(metric.lower()) is None


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
    with no_collection():
        return _build(list(rows), minimum, baseline)


def _build(rows: Sequence[Row], minimum: int, baseline: str) -> Boards:
    found = Boards()
    settings: dict[Setting, list[Group]] = {}
    speeds = latencies(rows)
    for _, same in groupby(rows, key=lambda row: (row.task, row.method, row.spec_hash)):
        for one in group(list(same), minimum):
            one = replace(one, latency=speeds.get(network(one.newest)))
            if not one.seeds:
                found.failures.append(one)
            elif one.role == "teacher":
                found.teachers.append(one)
            else:
                settings.setdefault(one.setting, []).append(one)
    found.boards.extend(_board(setting, groups, baseline) for setting, groups in settings.items())
    found.boards.sort(key=_in_front)
    return found


def network(row: Row) -> tuple[object, ...]:
    """Names the deployed student of a run and the machine that it was timed on: runs alike in it are equally fast."""
    sizes = [row.figure(name) for name in ("params", "macs", "bits", "packed_bytes")]
    machine = row.cpu, row.gpu, row.cores, row.threads
    return row.task, row.networks or row.pair, row.quant, *sizes, *machine


def latencies(rows: Iterable[Row]) -> dict[tuple[object, ...], Estimate]:
    """Joins what was measured of each network on each machine, by :func:`network`.

    A run is timed while others are busy, which differs from run to run and says nothing of the network. The ends are
    those of the fastest and the slowest run.
    """
    found: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        value = row.figure("latency_ms") if row.ok else None
        if value is not None:
            found.setdefault(network(row), []).append(value)
    return {
        key: Estimate(len(v), float(np.median(v)), None, min(v) if len(v) > 1 else None, max(v) if len(v) > 1 else None)
        for key, v in found.items()
    }


def _in_front(board: Board) -> tuple[object, ...]:
    enough = sum(g.enough for g in board.groups)
    newest = max(g.newest.finished for g in board.groups)
    return board.setting.task, board.setting.preset in TRIALS, -enough, -len(board.groups), -newest, board.setting


def _board(setting: Setting, groups: list[Group], baseline: str) -> Board:
    # Records are from strangers: the metric is what most groups say.
    metrics = Counter((g.primary, g.higher_is_better) for g in groups if g.primary)
    lead = max(groups, key=lambda g: (g.reference, g.method == baseline, len(g.seeds), g.newest.finished, g.spec_hash))
    (primary, higher_is_better), _ = min(metrics.items(), key=lambda item: (-item[1], item[0]))
    sign = -1.0 if higher_is_better else 1.0
    headroom, missing = _headroom(groups, primary, higher_is_better)
    groups = _with_trials([_with_gap(g, missing) for g in groups])
    ranked = _compared(groups, primary, higher_is_better, baseline)

    def place(g: Group) -> tuple[float, str, str]:
        shown = g.score if g.metric == (primary, higher_is_better) else None
        return sign * shown.mean if shown else np.inf, g.method, g.spec_hash

    ranked.sort(key=place)
    names = dict.fromkeys([primary, *(name for g in ranked for name in g.metrics)])
    teachers = [row for g in groups for row in g.scored if "teacher" in row.scores.names]
    newest = {row.teacher_seed: row for row in sorted(teachers, key=lambda row: (row.finished, row.run_id))}
    teacher = summarise([row.scores.get("teacher") for row in newest.values()])
    twins = {(row.seed, row.of("scratch")) for g in groups for row in g.scored if row.of("scratch") is not None}
    return Board(
        setting=setting,
        primary=primary,
        higher_is_better=higher_is_better,
        metrics=tuple(names),
        groups=tuple(ranked),
        teacher={name: found.mean for name, found in teacher.items()},
        teachers=len({row.of("teacher") for row in teachers}),
        teacher_seeds=tuple(sorted(newest)),
        scratch=summarise([row.scores.get("scratch") for row in lead.scored], len(lead.teachers)),
        twins=max(Counter(seed for seed, _ in twins).values(), default=0),
        headroom=headroom,
        twin_passes=_twin_passes(groups, baseline),
    )


def _twin_passes(groups: Iterable[Group], baseline: str) -> float | None:
    models = sorted((g for g in groups if g.reference or g.method == baseline), key=lambda g: not g.reference)
    found = (student_passes(g) for g in models)
    return next((value for value in found if value), None)


def _headroom(groups: Iterable[Group], primary: str, higher_is_better: bool) -> tuple[Estimate | None, str | None]:
    """Says what the teacher is better by in a setting, and why there is no gap to close where that may be nothing."""
    counts: dict[int, Counter[tuple[int, float | None, float | None]]] = {}
    for g in groups:
        for row in g.scored if g.metric == (primary, higher_is_better) else ():
            counts.setdefault(row.teacher_seed, Counter())[row.seed, row.of("scratch"), row.of("teacher")] += 1
    sign = 1.0 if higher_is_better else -1.0
    cells: dict[tuple[int, int], list[float]] = {}
    for teacher_seed, seen in sorted(counts.items()):
        # A method that teaches its teacher something else has one of its own, which is not what the setting is about.
        usual = max(seen.values()) / 2
        for (seed, s, t), n in seen.items():
            if n >= usual and s is not None and t is not None:
                cells.setdefault((seed, teacher_seed), []).append(sign * (t - s))
    seeds, teachers = largest(cells, MINIMUM)
    if len(teachers) > 1:
        found = grid([[float(np.mean(cells[seed, teacher])) for teacher in teachers] for seed in seeds])
    else:
        found = estimate([value for cell in cells.values() for value in sorted(cell)])
    if found is None or (found.mean > 0 if found.low is None else found.low > 0):
        return found, None
    if found.low is None:
        return found, "the teacher is not above the scratch student"
    half = found.mean - found.low
    return found, f"no headroom in this setting: the teacher is {found.mean:.3g} ± {half:.3g} above the scratch student"


def _with_gap(g: Group, missing: str | None) -> Group:
    if g.gap is None:
        return g
    if missing is None:
        # A teacher of the method's own may be worse than the student, whatever the setting has.
        room = np.sum(g.cell.below)
        missing = None if (room > 0) == g.higher_is_better else "its own teacher is not above the scratch student"
    return g if missing is None else replace(g, gap=None, gap_reason=missing)


def _with_trials(groups: Sequence[Group]) -> list[Group]:
    """Says how far trials of one factor differ in a setting, by any of its rows, and which were tuned otherwise."""
    spreads = [row.trial_spread for g in groups for row in g.scored if row.trial_spread is not None]
    spread = float(np.sqrt(np.mean(np.square(spreads)))) if spreads else None
    seeds = Counter(g.newest.trial_seeds for g in groups if g.trials)
    usual = max(seeds, key=lambda n: (seeds[n], n), default=0)
    found = []
    for g in groups:
        own = g.newest.trial_seeds
        note = (
            f"tuned under {own} seed{'s' * (own != 1)}, others here under {usual}"
            if g.trials and own != usual
            else None
        )
        found.append(replace(g, trial_spread=spread, trial_note=note))
    return found


def _compared(groups: Sequence[Group], primary: str, higher_is_better: bool, baseline: str) -> list[Group]:
    """Compares groups of equal tuning with their twins and the baseline, and gives them places or says why not."""
    done = [replace(g, vs_scratch=_alone(), vs_kd=_alone(), unranked=_ALONE) for g in groups if g.reference]
    by_trials: dict[tuple[object, ...], list[Group]] = {}
    for g in groups:
        if not g.reference:
            by_trials.setdefault((g.trials, g.metric), []).append(g)
    for (trials, _), same in by_trials.items():
        families, matched = Families(same), _versus_matched(same)
        baselines = _partners(families, [i for i, g in enumerate(same) if g.method == baseline])
        reasons = [_unranked(g, primary, higher_is_better) for g in same]
        ranked = [i for i, reason in enumerate(reasons) if reason is None]
        places = dict(zip(ranked, families.places(ranked, higher_is_better), strict=True)) if ranked else {}
        tuned = f"with {trials} tuning trials" if trials else "without tuning"
        none = f"no {baseline} {tuned} here" if not baselines else None
        for i, g in enumerate(same):
            vs_kd = Difference(reason=none) if none else _versus(families, i, baselines)
            if g.method == baseline:
                vs_kd = Difference(reason=f"{baseline} itself")
            vs_scratch = _versus_scratch(families, i)
            own = replace(g, vs_scratch=vs_scratch, vs_kd=vs_kd, vs_matched=matched[i])
            done.append(replace(own, rank=places.get(i), unranked=reasons[i]))
    return done


def _versus_matched(groups: Sequence[Group]) -> list[Difference]:
    """Compares groups with the students that had as much compute without a teacher, corrected for all (Holm).

    These twins are other ones for every method, so that there is no family over shared ones.
    """
    found = []
    for g in groups:
        drawn = together((g.drawn(), g.drawn(MATCHED)))
        found.append(paired(g.over(lambda row: row.score), g.over(lambda row: row.of(MATCHED)), drawn=drawn))
    p = [None if one is None else paired_p(one) for one in found]
    family = sum(value is not None for value in p)
    done = []
    for g, one, alone, corrected in zip(groups, found, p, holm(p), strict=True):
        if one is None:
            done.append(Difference(reason="no scratch twin of equal compute"))
            continue
        verdict: Verdict = "open"
        if corrected is not None and corrected < 1 - LEVEL:
            verdict = "better" if (one.mean > 0) == g.higher_is_better else "worse"
        done.append(Difference(one, verdict, p=alone, corrected=corrected, family=family))
    return done


def _unranked(g: Group, primary: str, higher_is_better: bool) -> str | None:
    if g.newest.origin != "measured":
        return f"its numbers are {g.newest.origin}, not measured"
    if g.metric != (primary, higher_is_better):
        return f"it has no {primary}"
    return g.note


def _alone() -> Difference:
    return Difference(reason=_ALONE)


def _versus_scratch(families: Families, index: int) -> Difference:
    g = families.groups[index]
    cells = cells_of(families.twins[index])
    if not cells:
        return Difference(reason="no scratch twin")
    pair, drawn = (scores(g, cells), scores(g, cells, "scratch")), (draws(g, cells), draws(g, cells, "scratch"))
    return _difference(*pair, drawn, families.to_scratch(index), g.higher_is_better)


def _partners(families: Families, baselines: Sequence[int]) -> list[int]:
    """Returns the newest of the baselines that stand beside the same scratch twins: a few, however many there are."""
    newest: dict[tuple[object, ...], int] = {}
    for i in sorted(baselines, key=lambda i: (families.groups[i].newest.finished, families.groups[i].spec_hash)):
        newest[families.twins[i], families.groups[i].seeds, families.groups[i].teachers] = i
    return list(newest.values())


def _versus(families: Families, index: int, baselines: Sequence[int]) -> Difference:
    """Compares with the baseline of equal tuning by seeds of the same scratch twin, hence of the same recipe.

    Both have the same teacher in every pair.
    """
    g = families.groups[index]
    own = families.twins[index]

    def preference(i: int) -> tuple[object, ...]:
        other = families.groups[i]
        return len(own & families.twins[i]), other.newest.finished, other.spec_hash

    chosen = max(baselines, key=preference)
    partner = families.groups[chosen]
    cells = cells_of(own & families.twins[chosen])
    if not cells:
        name = partner.method
        if not any(set(g.seeds) & set(families.groups[i].seeds) for i in baselines):
            return Difference(reason=f"no seed in common with {name}")
        met = any(set(g.teachers) & set(families.groups[i].teachers) for i in baselines)
        return Difference(reason=f"no {name} with the same scratch twins" if met else f"no {name} of the same teachers")
    pair, drawn = (scores(g, cells), scores(partner, cells)), (draws(g, cells), draws(partner, cells))
    found = _difference(*pair, drawn, families.between(index, chosen), g.higher_is_better)
    return replace(found, partner=partner.spec_hash)


def _difference(
    first: Floats,
    second: Floats,
    drawn: tuple[Draws | None, Draws | None],
    contrast: tuple[Contrast, int] | None,
    higher_is_better: bool,
) -> Difference:
    found = paired(first, second, drawn=together(drawn))
    if found is None:
        return Difference(reason="no seed with both scores")
    if contrast is None:  # a single seed
        return Difference(found, "open")
    corrected, family = contrast
    verdict: Verdict = "open"
    # Where some methods of a table lack the outcomes of samples, the correction is over seeds alone.
    if corrected.resolved and (not found.samples or found.excludes(0.0)):
        verdict = "better" if (found.mean > 0) == higher_is_better else "worse"
    return Difference(found, verdict, p=paired_p(found), corrected=corrected.p, family=family)
