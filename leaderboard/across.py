"""One figure per method over all tasks, of groups that were tuned alike.

::

    found = across(boards)          # boards: Boards
    found.boards      # list[Board]: the cells behind the figures, one per task and pair
    found.common      # the cells that methods are compared over: indices of boards
    found.methods     # list[Method], the largest gap closed over the common cells first: gap and imputed (Estimate),
                      # missing, better/worse/open against scratch and the baseline, p (Wilcoxon, Holm), groups
    found.critical, found.critical_methods, found.critical_reason   # CriticalDifference or None with the reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from leaderboard.boards import BASELINE, Board, Boards
from leaderboard.groups import Group
from leaderboard.stats import (
    Cell,
    CriticalDifference,
    Estimate,
    critical_difference,
    holm,
    mean_ratio,
    wilcoxon,
)

#: Fewest cells that a signed-rank test needs to come below 0.05 at all.
PAIRS = 6


@dataclass(frozen=True, slots=True)
class Method:
    """A method over all cells.

    Attributes:
        groups: Its group in each cell that has one, by the index of the cell in :attr:`Across.boards`.
        gap: Mean over the common cells of the gap closed, each a ratio of means over its seeds, interval by stratified
            bootstrap; None where the method lacks one of these cells.
        imputed: The same over all cells in which any method has a gap closed, those that the method lacks taken for 0;
            None where it has none.
        missing: The cells that were taken for 0.
        scratch: How many cells say ``better``, ``worse`` and ``open`` against the student trained alone.
        baseline: The same against the baseline.
        p: That its gap closed does not differ from the baseline's over the cells that both have; Holm-corrected. None
            where there are fewer than :data:`PAIRS` of them.
        cells: How many cells both have.
    """

    name: str
    groups: Mapping[int, Group]
    gap: Estimate | None
    imputed: Estimate | None
    missing: tuple[int, ...]
    scratch: Counter[str]
    baseline: Counter[str]
    p: float | None
    cells: int


@dataclass(frozen=True, slots=True)
class Across:
    """All methods over all cells, and which cells are common to those that are compared."""

    boards: tuple[Board, ...]
    common: tuple[int, ...]
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
    p: list[float | None] = []
    shared: list[int] = []
    for name in names:
        pairs = [(a, b) for a, b in zip(gaps[name], base, strict=True) if a is not None and b is not None]
        shared.append(len(pairs))
        enough = name != baseline and len(pairs) >= PAIRS
        p.append(wilcoxon(*zip(*pairs, strict=True)) if enough else None)
    shared_cells = common({name: {i for i, gap in enumerate(own) if gap is not None} for name, own in gaps.items()})
    usable = tuple(i for i in range(len(cells)) if any(own[i] is not None for own in gaps.values()))
    methods = [
        _method(
            name,
            {i: groups[name] for i, groups in enumerate(chosen) if name in groups},
            shared_cells,
            usable,
            value,
            count,
        )
        for name, value, count in zip(names, holm(p), shared, strict=True)
    ]
    methods.sort(key=lambda m: (m.gap is None, -m.gap.mean if m.gap else 0.0, m.name))
    critical, critical_methods, reason = _critical(cells, chosen)
    return Across(tuple(cells), shared_cells, tuple(methods), critical, critical_methods, reason)


def _gap(group: Group | None) -> float | None:
    return group.gap.mean if group is not None and group.gap is not None else None


def common(having: Mapping[str, Collection[int]]) -> tuple[int, ...]:
    """Picks the cells to compare methods over: those for which methods times cells is largest.

    Cells are left out one by one, each time the one without which most methods have all that remain.

    Args:
        having: The cells that each method has.
    """
    cells = sorted({cell for own in having.values() for cell in own})

    def complete(kept: Collection[int]) -> int:
        return sum(set(kept) <= set(own) for own in having.values())

    best: tuple[tuple[int, int], tuple[int, ...]] = ((0, 0), ())
    kept = tuple(cells)
    while kept:
        methods = complete(kept)
        # One method is nothing to compare with, but better than nothing to show.
        best = max(best, ((methods * len(kept) if methods > 1 else 0, methods), kept), key=lambda found: found[0])
        without = [tuple(c for c in kept if c != cell) for cell in kept]
        kept = max(without, key=complete)
    return best[1]


def _method(
    name: str,
    groups: Mapping[int, Group],
    shared: Sequence[int],
    usable: Sequence[int],
    p: float | None,
    cells: int,
) -> Method:
    strata = {i: g.cell for i, g in groups.items() if g.gap is not None}
    missing = tuple(i for i in usable if i not in strata)
    nothing = Cell([0.0], [1.0])
    return Method(
        name=name,
        groups=groups,
        gap=mean_ratio([strata[i] for i in shared]) if shared and strata.keys() >= set(shared) else None,
        imputed=mean_ratio([strata.get(i, nothing) for i in usable]) if strata else None,
        missing=missing,
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
