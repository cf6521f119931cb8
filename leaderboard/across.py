"""One figure per method over all tasks, of groups that were tuned alike.

::

    found = across(boards)          # boards: Boards
    found.boards      # list[Board]: the cells behind the figures, one per task and pair
    found.methods     # list[Method], best interquartile mean first: gap (Estimate), better/worse/open against scratch
                      # and the baseline, p (Wilcoxon over cells against the baseline, Holm-corrected), groups
    found.critical, found.critical_methods, found.critical_reason   # CriticalDifference or None with the reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leaderboard.boards import BASELINE, Board, Boards
from leaderboard.groups import Group
from leaderboard.stats import (
    CriticalDifference,
    Estimate,
    critical_difference,
    holm,
    interquartile_mean,
    wilcoxon,
)


@dataclass(frozen=True, slots=True)
class Method:
    """A method over all cells.

    Attributes:
        groups: Its group in each cell that has one, by the index of the cell in :attr:`Across.boards`.
        gap: Interquartile mean of the gap closed over all runs, interval by stratified bootstrap; None without any.
        scratch: How many cells say ``better``, ``worse`` and ``open`` against the student trained alone.
        baseline: The same against the baseline.
        p: That its gap closed does not differ from the baseline's over the cells that both have; Holm-corrected.
        cells: How many cells ``p`` was computed from.
    """

    name: str
    groups: Mapping[int, Group]
    gap: Estimate | None
    scratch: Counter[str]
    baseline: Counter[str]
    p: float | None
    cells: int


@dataclass(frozen=True, slots=True)
class Across:
    """All methods over all cells."""

    boards: tuple[Board, ...]
    methods: tuple[Method, ...]
    critical: CriticalDifference | None
    critical_methods: tuple[str, ...]
    critical_reason: str | None


def headline(boards: Boards) -> list[Board]:
    """Picks one board per task and pair: the one that is shown first."""
    first: dict[tuple[str, str], Board] = {}
    for board in boards.boards:
        first.setdefault((board.setting.task, board.setting.pair), board)
    return list(first.values())


def representatives(board: Board) -> dict[str, Group]:
    """Picks one group per method: of several the one with most seeds, then the newest.

    All have the tuning that most groups of the board have; rows without a rank are left out.
    """
    ranked = [group for group in board.groups if group.rank is not None]
    if not ranked:
        return {}
    trials = Counter(group.trials for group in ranked)
    usual = max(trials, key=lambda n: (trials[n], n))
    chosen: dict[str, Group] = {}
    for group in sorted(ranked, key=lambda g: (len(g.seeds), g.newest.finished, g.spec_hash)):
        if group.trials == usual:
            chosen[group.method] = group
    return dict(sorted(chosen.items()))


def across(boards: Boards, baseline: str = BASELINE) -> Across:
    """Joins the boards.

    Args:
        boards: Everything that was measured.
        baseline: The method of the tests.
    """
    cells = headline(boards)
    chosen = [representatives(board) for board in cells]
    names = sorted({name for groups in chosen for name in groups})
    gaps = {name: [_gap(groups.get(name)) for groups in chosen] for name in names}
    base = gaps.get(baseline, [None] * len(cells))
    p, shared = [], []
    for name in names:
        pairs = [(a, b) for a, b in zip(gaps[name], base, strict=True) if a is not None and b is not None]
        shared.append(len(pairs))
        p.append(wilcoxon(*zip(*pairs, strict=True)) if pairs and name != baseline else None)
    methods = [
        _method(name, {i: groups[name] for i, groups in enumerate(chosen) if name in groups}, value, count)
        for name, value, count in zip(names, holm(p), shared, strict=True)
    ]
    methods.sort(key=lambda m: (m.gap is None, -m.gap.mean if m.gap else 0.0, m.name))
    critical, critical_methods, reason = _critical(cells, chosen)
    return Across(tuple(cells), tuple(methods), critical, critical_methods, reason)


def _gap(group: Group | None) -> float | None:
    return group.gap.mean if group is not None and group.gap is not None else None


def _method(name: str, groups: Mapping[int, Group], p: float | None, cells: int) -> Method:
    strata = [[row.gap_closed for row in g.scored if row.gap_closed is not None] for g in groups.values()]
    return Method(
        name=name,
        groups=groups,
        gap=interquartile_mean(strata),
        scratch=Counter(g.vs_scratch.verdict for g in groups.values() if g.vs_scratch.verdict),
        baseline=Counter(g.vs_kd.verdict for g in groups.values() if g.vs_kd.verdict),
        p=p,
        cells=cells,
    )


def _critical(
    cells: Sequence[Board], chosen: Sequence[Mapping[str, Group]]
) -> tuple[CriticalDifference | None, tuple[str, ...], str | None]:
    """Ranks the methods that every cell has; cells with fewer than two methods say nothing."""
    kept = [(board, groups) for board, groups in zip(cells, chosen, strict=True) if len(groups) > 1]
    common = sorted(set.intersection(*(set(groups) for _, groups in kept))) if kept else []
    scores = []
    for board, groups in kept:
        sign = 1.0 if board.higher_is_better else -1.0
        scores.append([sign * score.mean for name in common if (score := groups[name].score) is not None])
    found, reason = critical_difference(scores if common else [])
    return found, tuple(common), reason
