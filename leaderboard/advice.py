"""What the records say to somebody who has to choose: a sentence for each setting, and which method to try first.

::

    sentence(board)                    # "7 of 39 methods beat kd; the cheapest of them is dkd …"
    found = recommend(boards, "classification", student="resnet8")     # Recommendation
    found.advice                       # list[Advice], what to try first in front
    found.trials                       # what this advice would have been worth in settings that it had not seen
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from kdbench.errors import KDBenchError, nearest
from leaderboard.across import common, representatives
from leaderboard.boards import BASELINE, TRIALS, Board, Boards
from leaderboard.costs import passes
from leaderboard.groups import Group
from leaderboard.stats import RESAMPLES, Cell, Estimate, Floats, drawn_means, draws, mean_ratio

#: Fewest methods of a setting from which one can be chosen.
CHOICE = 3


@dataclass(frozen=True, slots=True)
class Advice:
    """What to expect of a method.

    Attributes:
        gap: Mean gap closed over the settings behind the advice.
        first: Share of the draws of seeds in which it is the best of all.
        verdicts: How many of these settings say ``better``, ``open`` and ``worse`` against the student trained alone.
        cost: Median of what its training costs, in forward passes of the scratch twin's.
        groups: Its rows behind this.
    """

    method: str
    gap: Estimate
    first: float
    verdicts: Counter[str]
    cost: float | None
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """What the advice of all other settings would have been worth in one.

    Attributes:
        board: The setting that was left out.
        advised: The method to try first by the others, None where they say nothing of its methods.
        among_best: Whether no method was surely better.
        lost: Gap closed by the best method less that by the advised one; ``lost_baseline`` by the baseline.
    """

    board: Board
    advised: str | None
    among_best: bool
    lost: float
    lost_baseline: float | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Advice for a task, the settings that it is from, and how good such advice is."""

    advice: list[Advice]
    boards: list[Board]
    trials: list[Trial]


def sentence(board: Board, baseline: str = BASELINE) -> str:
    """Says in a sentence what a setting shows, from differences corrected for all of its rows."""
    chosen = {name: g for name, g in representatives(board).items() if name != baseline}
    if not chosen:
        return "No method has enough seeds yet."
    against = {name: g for name, g in chosen.items() if g.vs_kd.verdict}
    count = f"{len(against)} method{'s' * (len(against) != 1)}"
    ahead = [g for g in against.values() if g.vs_kd.verdict == "better"]
    if not against:
        first = f"No method stands beside {baseline}"
    elif not ahead:
        first = f"None of {count} is told apart from {baseline} as better"
    else:
        cheap = min(ahead, key=lambda g: (passes(g, board) or np.inf, -_mean(g)))
        cost = passes(cheap, board)
        said = "" if cost is None else f", at {cost:.3g} × the passes of the scratch twin's training"
        verb = "beats" if len(ahead) == 1 else "beat"
        only = f"it is {cheap.method}" if len(ahead) == 1 else f"the cheapest of them is {cheap.method}"
        first = f"{len(ahead)} of {count} {verb} {baseline}; {only}{said}"
    everyone = representatives(board).values()
    verdicts = Counter(g.vs_scratch.verdict for g in everyone)
    return (
        f"{first}. Against the student trained alone {verdicts['better']} of {len(everyone)} are better, "
        f"{verdicts['worse']} worse and {verdicts['open'] + verdicts[None]} not told apart."
    )


def _mean(group: Group) -> float:
    return group.gap.mean if group.gap is not None else -np.inf


def settings(boards: Boards, task: str | None = None) -> list[Board]:
    """Returns the settings that advice is made of: with a gap, and enough methods to choose from."""
    return [
        board
        for board in boards.boards
        if task in (None, board.setting.task) and board.setting.preset not in TRIALS and len(_usable(board)) >= CHOICE
    ]


def _usable(board: Board) -> dict[str, Group]:
    return {name: g for name, g in representatives(board).items() if g.gap is not None}


def advise(boards: Sequence[Board], among: Sequence[str] | None = None) -> list[Advice]:
    """Ranks methods by their mean gap closed over the settings that most of them share.

    Args:
        boards: Settings.
        among: The methods that may be advised; all by default.
    """
    chosen = [{n: g for n, g in _usable(board).items() if among is None or n in among} for board in boards]
    names = sorted({name for groups in chosen for name in groups})
    shared = common({name: {i for i, groups in enumerate(chosen) if name in groups} for name in names})
    methods = [name for name in names if shared and all(name in chosen[i] for i in shared)]
    if not methods:
        return []
    pairs = {name: [chosen[i][name].cell for i in shared] for name in methods}
    drawn = np.stack([_draws(pairs[name]) for name in methods])
    wins = Counter(drawn.argmax(axis=0).tolist())
    found = []
    for place, name in enumerate(methods):
        gap = mean_ratio(pairs[name])
        groups = tuple(chosen[i][name] for i in shared)
        costs = [c for i, g in zip(shared, groups, strict=True) if (c := passes(g, boards[i])) is not None]
        if gap is not None:
            verdicts: Counter[str] = Counter(g.vs_scratch.verdict or "open" for g in groups)
            cost = float(np.median(costs)) if costs else None
            found.append(Advice(name, gap, wins[place] / drawn.shape[1], verdicts, cost, groups))
    return sorted(found, key=lambda a: (-a.gap.mean, a.method))


def _draws(cells: Sequence[Cell]) -> Floats:
    """Draws within each cell as :func:`mean_ratio` does; methods of equal ones get the same, as their twins are."""
    rng = np.random.default_rng(0)
    total = np.zeros(RESAMPLES)
    for cell in cells:
        pair = np.asarray(cell.above, dtype=float), np.asarray(cell.below, dtype=float)
        above, below = drawn_means(cell, pair, draws(pair[0].shape, RESAMPLES, rng))
        total += above / below
    return total / len(cells)


def recommend(boards: Boards, task: str, student: str | None = None) -> Recommendation:
    """Says which method to try first for a task.

    Args:
        boards: Everything that was measured.
        task: Its name.
        student: Part of a pair's name; settings with it alone are asked, where there are any.

    Raises:
        KDBenchError: No setting of the task has enough methods, or none has this student.
    """
    every = settings(boards)
    own = [board for board in every if board.setting.task == task]
    if not own:
        known = sorted({board.setting.task for board in every})
        raise KDBenchError(f"task={task}: no setting with {CHOICE} methods and a gap: {nearest(task, known)}")
    if student is not None:
        pairs = sorted({board.setting.pair for board in own})
        own = [board for board in own if student in board.setting.pair]
        if not own:
            raise KDBenchError(f"student={student}: in none of the pairs of {task}: {', '.join(pairs)}")
    return Recommendation(advise(own), own, [trial(board, every) for board in every])


def trial(left_out: Board, boards: Sequence[Board], baseline: str = BASELINE) -> Trial:
    """Asks the other settings, those of the same task where there are any, and looks at what their advice is worth."""
    others = [board for board in boards if board is not left_out]
    same = [board for board in others if board.setting.task == left_out.setting.task]
    usable: Mapping[str, Group] = _usable(left_out)
    advice = advise(same or others, list(usable))
    best = max(map(_mean, usable.values()))
    own = usable.get(baseline)
    lost_baseline = None if own is None else best - _mean(own)
    if not advice:
        return Trial(left_out, None, False, best, lost_baseline)
    group = usable[advice[0].method]
    among = group.rank is not None and group.rank[0] == 1
    return Trial(left_out, group.method, among, best - _mean(group), lost_baseline)


def accuracy(trials: Sequence[Trial]) -> str:
    """Says how good advice was in settings that it had not seen."""
    asked = [t for t in trials if t.advised is not None]
    if not asked:
        return "There are not two settings with methods in common: how good this advice is cannot be said."
    right = sum(t.among_best for t in asked)
    lost = float(np.mean([t.lost for t in asked]))
    text = (
        f"Left out one by one, in {right} of {len(asked)} settings the method advised by the others was among the "
        f"best; it closed {100 * lost:.0f} % of the gap less than the best one, on average"
    )
    baselines = [t.lost_baseline for t in asked if t.lost_baseline is not None]
    if len(baselines) == len(asked):
        text += f", {BASELINE} in its place {100 * float(np.mean(baselines)):.0f} % less"
    return text + "."


def shown(found: Recommendation, count: int = 5) -> Table:
    """Returns the advice for a terminal."""
    names = "; ".join(" · ".join((b.setting.pair, b.setting.dataset, b.setting.preset)) for b in found.boards)
    heads = ("try", "expected gap closed", "best of all in", "better / open / worse", "training")
    table = Table(*heads, title=f"What to try first, from {names}")
    for one in found.advice[:count]:
        ends = (
            ""
            if one.gap.low is None or one.gap.high is None
            else f" [{100 * one.gap.low:.0f}, {100 * one.gap.high:.0f}]"
        )
        verdicts = " / ".join(str(one.verdicts[key]) for key in ("better", "open", "worse"))
        cost = "" if one.cost is None else f"{one.cost:.3g} ×"
        table.add_row(
            one.method, f"{100 * one.gap.mean:.0f} %{ends}", f"{100 * one.first:.0f} % of draws", verdicts, cost
        )
    return table
