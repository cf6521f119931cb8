"""Every method of a board against one of them, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from kdbench.errors import KDBenchError, nearest
from leaderboard.boards import Board
from leaderboard.groups import Group
from leaderboard.stats import Contrast, Estimate, dunnett, estimate

COLUMNS = ("method", "score", "difference", "simultaneous 95%", "p, corrected", "gap closed", "factor")


@dataclass(frozen=True)
class Comparison:
    """What the methods of a board that stand beside the same scratch twins say against a control.

    Attributes:
        seeds: Those that all compared methods have.
        rows: Method, its score over these seeds, and its contrast (None for the control), best first.
        left_out: Why others are in no comparison with this control, by method.
        teacher: What the teacher scores by the newest record, where there is one.
    """

    seeds: tuple[int, ...]
    rows: tuple[tuple[Group, Estimate, Contrast | None], ...]
    left_out: dict[str, str]
    teacher: float | None


def contrasts(board: Board, control: str) -> list[Comparison]:
    """Compares the methods of a board that were run under as many seeds as the control, each by its newest group.

    A control that was run beside several sets of scratch twins (on another machine, under another recipe) makes as many
    comparisons, the newest first: students of equal twins and equal tuning alone are compared.

    Raises:
        KDBenchError: The control is not there, or there are not two seeds and two methods.
    """
    groups = sorted((g for g in board.groups if g.metric == board.metric), key=lambda g: g.newest.finished)
    controls = {(g.trials, *_twins(g).items()): g for g in groups if g.method == control}
    if not controls:
        where = f"{board.setting.task} {board.setting.dataset} {board.setting.preset}"
        known = {g.method for g in groups}
        raise KDBenchError(f"--control {control}: not among the methods of {where}: {nearest(control, known)}")
    blocks = []
    for own in sorted(controls.values(), key=lambda g: -g.newest.finished):
        alike = {g.method: g for g in groups if not _why_not(g, own)} | {control: own}
        if len(alike) > 1 and len(own.scored) > 1:
            blocks.append(list(alike.values()))
    if not blocks:
        raise KDBenchError(
            f"{len(alike)} methods and {len(own.scored)} seeds of {control} have one scratch twin, expected two of each"
        )
    compared = {g.method for block in blocks for g in block}
    left_out = {g.method: _why_not(g, own) for g in groups if g.method not in compared}
    return [_compared(board, block, control, left_out) for block in blocks]


def _compared(board: Board, groups: Sequence[Group], control: str, left_out: dict[str, str]) -> Comparison:
    own = next(g for g in groups if g.method == control)
    seeds = {row.seed for row in own.scored}
    scores = np.array([[row.score for row in g.scored if row.seed in seeds] for g in groups], dtype=float)
    found = dunnett(scores, groups.index(own))
    means = [estimate(values) for values in scores]
    rows = [(g, e, c) for g, e, c in zip(groups, means, found, strict=True) if e is not None]
    rows.sort(key=lambda row: row[1].mean, reverse=board.higher_is_better)
    newest = max(groups, key=lambda g: g.newest.finished).newest
    return Comparison(tuple(sorted(seeds)), tuple(rows), left_out, newest.of("teacher"))


def _twins(group: Group) -> dict[int, float | None]:
    return {row.seed: row.of("scratch") for row in group.scored}


def _why_not(group: Group, control: Group) -> str:
    """Says why a group is not compared with a control, by seed; empty where it is."""
    own, twins = _twins(group), _twins(control)
    if not twins.keys() <= own.keys():
        return f"{len(twins.keys() & own.keys())} of {len(twins)} seeds"
    if any(own[seed] != twin for seed, twin in twins.items()):
        return "other scratch twins"
    equal = group.reference or control.reference or group.trials == control.trials
    return "" if equal else f"{group.trials} tuning trials"


def table(board: Board, found: Comparison, control: str) -> Table:
    """Returns the comparison for a terminal."""
    shown = Table(*COLUMNS, title=_title(board, found, control), caption=_caption(found))
    for line in _lines(found):
        shown.add_row(*line)
    return shown


def markdown(board: Board, found: Comparison, control: str) -> str:
    """Returns the comparison as a table for a page."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *_lines(found)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, [_title(board, found, control), rows, _caption(found)]))


def _title(board: Board, found: Comparison, control: str) -> str:
    setting = board.setting
    where = " · ".join((setting.task, setting.dataset, setting.pair, setting.preset, board.primary))
    teacher = "" if found.teacher is None else f" · teacher {found.teacher:.2f}"
    return f"{where}{teacher} · difference to {control} over {len(found.seeds)} seeds"


def _caption(found: Comparison) -> str:
    return "Not compared: " * bool(found.left_out) + ", ".join(
        f"{n} ({why})" for n, why in sorted(found.left_out.items())
    )


def _lines(found: Comparison) -> Iterator[tuple[str, ...]]:
    for group, score, contrast in found.rows:
        half = "" if score.low is None else f" ± {score.mean - score.low:.2f}"
        line = [group.method, f"{score.mean:.2f}{half}", "", "", ""]
        if contrast is not None:
            p = "< 0.001" if contrast.p < 0.001 else f"{contrast.p:.3f}"
            ends = f"{contrast.low:+.2f} to {contrast.high:+.2f}"
            line[2:] = f"{contrast.mean:+.2f}", ends, p + (" *" if contrast.resolved else "")
        factors = {row.factor for row in group.scored}
        gap = "" if group.gap is None else f"{100 * group.gap.mean:.0f} %"
        yield *line, gap, f"{factors.pop():g}" if len(factors) == 1 and group.trials else ""
