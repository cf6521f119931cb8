"""Every method of a board against one of them, corrected for how many there are.

Over a control of several teachers there are two comparisons: the methods that have all of them, over seeds and
teachers, and all methods that have the first of them, conditional on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from kdbench.base.terminal import decimals
from kdbench.errors import KDBenchError, nearest
from leaderboard.boards import Board
from leaderboard.crossed import together
from leaderboard.families import draws, scores
from leaderboard.groups import Group
from leaderboard.stats import Contrast, Estimate, dunnett, grid, ratio

COLUMNS = ("method", "score", "difference", "simultaneous 95%", "p, corrected", "gap closed", "factor")


@dataclass(frozen=True)
class Comparison:
    """What the methods of a board that stand beside the same scratch twins say against a control.

    Attributes:
        seeds: Those that all compared methods have, under all of ``teachers``.
        rows: Method, its score over these seeds, and its contrast (None for the control), best first.
        left_out: Why others are in no comparison with this control, by method.
        teacher: What the teacher scores by the newest record, where there is one.
    """

    seeds: tuple[int, ...]
    teachers: tuple[int, ...]
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
    blocks: list[tuple[list[Group], Group, _Cells]] = []
    for own in sorted(controls.values(), key=lambda g: -g.newest.finished):
        for cells in _grids(own):
            alike = {g.method: g for g in groups if not _why_not(g, own, cells)} | {control: own}
            # Over one teacher of several it says something new of further methods alone.
            new = not blocks or blocks[-1][1] is not own or len(alike) > len(blocks[-1][0])
            if len(alike) > 1 and len(own.seeds) > 1 and new:
                blocks.append((list(alike.values()), own, cells))
    if not blocks:
        raise KDBenchError(
            f"{len(alike)} methods and {len(own.seeds)} seeds of {control} have one scratch twin, expected two of each"
        )
    compared = {g.method for block, _, _ in blocks for g in block}
    left_out = {g.method: _why_not(g, own, cells) for g in groups if g.method not in compared}
    return [_compared(board, block, own, cells, left_out) for block, own, cells in blocks]


#: Seeds and teachers, every combination.
_Cells = list[tuple[int, int]]


def _grids(control: Group) -> list[_Cells]:
    """Returns what the control can be compared over: all of its seeds and teachers, and its first teacher alone."""
    teachers = [control.teachers, control.teachers[:1]][: len(control.teachers)]
    return [[(seed, teacher) for seed in control.seeds for teacher in own] for own in teachers]


def _compared(board: Board, groups: Sequence[Group], own: Group, cells: _Cells, left_out: dict[str, str]) -> Comparison:
    values = np.array([scores(g, cells) for g in groups])
    drawn = [draws(g, cells) for g in groups]
    every = together(drawn)
    joined = every and every[0]._replace(values=np.stack([one.values for one in every], axis=1))
    found = dunnett(values, groups.index(own), joined or None)
    means = [grid(one, drawn=draw) for one, draw in zip(values, drawn, strict=True)]
    rows = [(g, e, c) for g, e, c in zip(groups, means, found, strict=True) if e is not None]
    rows.sort(key=lambda row: row[1].mean, reverse=board.higher_is_better)
    newest = max(groups, key=lambda g: g.newest.finished)
    kept = set(cells)
    taught = [row.of("teacher") for row in newest.scored if (row.seed, row.teacher_seed) in kept]
    known = [score for score in taught if score is not None]
    return Comparison(
        own.seeds,
        tuple(sorted({teacher for _, teacher in cells})),
        tuple(rows),
        left_out,
        float(np.mean(known)) if known else None,
    )


def _twins(group: Group) -> dict[tuple[int, int], float | None]:
    return {(row.seed, row.teacher_seed): row.of("scratch") for row in group.scored}


def _why_not(group: Group, control: Group, cells: _Cells) -> str:
    """Says why a group is not compared with a control over seeds and teachers; empty where it is."""
    own, twins = _twins(group), _twins(control)
    missing = [cell for cell in cells if cell not in own]
    if missing:
        seeds = {seed for seed, _ in cells}
        shared = seeds - {seed for seed, _ in missing}
        return f"{len(shared)} of {len(seeds)} seeds" if set(group.seeds) < seeds else "other teachers"
    if any(own[cell] != twins[cell] for cell in cells):
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
    parts = [setting.task, setting.dataset, setting.pair, setting.preset, board.primary]
    parts += [f"teacher {setting.teacher}"] * bool(setting.teacher)
    many = len(found.teachers) > 1
    if found.teacher is not None:
        parts.append(f"teacher{'s' * many} {found.teacher:.{decimals(found.teacher)}f}")
    over = f"{len(found.seeds)} seeds"
    over += f" × {len(found.teachers)} teachers" if many else ", conditional on one teacher"
    return f"{' · '.join(parts)} · difference to {control} over {over}"


def _caption(found: Comparison) -> str:
    return "Not compared: " * bool(found.left_out) + ", ".join(
        f"{n} ({why})" for n, why in sorted(found.left_out.items())
    )


def _gap(group: Group, found: Comparison) -> Estimate | None:
    """Returns the gap closed over what is compared, where the row has one at all."""
    if group.gap is None or set(group.teachers) == set(found.teachers):
        return group.gap
    cells = [(seed, teacher) for seed in found.seeds for teacher in found.teachers]
    own, alone, teacher = scores(group, cells), scores(group, cells, "scratch"), scores(group, cells, "teacher")
    return ratio(own - alone, teacher - alone)


def _lines(found: Comparison) -> Iterator[tuple[str, ...]]:
    digits = max((decimals(score.mean) for _, score, _ in found.rows), default=2)
    for group, score, contrast in found.rows:
        half = "" if score.low is None else f" ± {score.mean - score.low:.{digits}f}"
        line = [group.method, f"{score.mean:.{digits}f}{half}", "", "", ""]
        if contrast is not None:
            p = "< 0.001" if contrast.p < 0.001 else f"{contrast.p:.3f}"
            ends = f"{contrast.low:+.{digits}f} to {contrast.high:+.{digits}f}"
            line[2:] = f"{contrast.mean:+.{digits}f}", ends, p + (" *" if contrast.resolved else "")
        factors = {row.factor for row in group.scored if row.teacher_seed in found.teachers}
        closed = _gap(group, found)
        gap = "" if closed is None else f"{100 * closed.mean:.0f} %"
        yield *line, gap, f"{factors.pop():g}" if len(factors) == 1 and group.trials else ""
