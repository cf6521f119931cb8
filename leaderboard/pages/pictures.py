"""What a task's page draws of a setting: quality over cost, differences, seeds, places, curves; its table of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from markupsafe import Markup

from leaderboard import charts, plots
from leaderboard.across import representatives
from leaderboard.boards import BASELINE, Board
from leaderboard.charts import Dot, Point
from leaderboard.costs import passes
from leaderboard.exports import NONE, Cell, Column, Table
from leaderboard.families import Families
from leaderboard.groups import Group
from leaderboard.pages import common, curves
from leaderboard.plots import Band, Strip
from leaderboard.site import Site
from leaderboard.stats import Floats, columns, grid

#: Settings whose charts a page draws.
CHARTED = 4
#: Points of a chart of quality over cost: the best for their cost, and the best.
POINTS = 200
#: Rows of a dot plot, and of a table of pairs.
DOTS = 40
#: Costs of a quantised student, which its settings differ in.
PACKED = ("bits", "size")
#: Bits of a weight that is not quantised.
FLOAT_BITS = 32

Price = Callable[[Group, Board], float | None]


def draw(site: Site, boards: Sequence[Board]) -> list[dict[str, object]]:
    """Draws what may share axes: one data set and preset, all pairs, augments and quants."""
    names = {id(b): n for b, n in zip(boards, common.settings(boards), strict=True)}

    def family(board: Board) -> tuple[str, ...]:
        own = board.setting
        return own.dataset, own.digest, own.fold, own.preset, own.protocol, board.primary

    order = {f: i for i, f in reversed(list(enumerate(map(family, boards))))}
    together = sorted(boards, key=lambda b: order[family(b)])
    drawn: list[dict[str, object]] = []
    for number, (_, same) in enumerate(groupby(together, key=family)):
        if number == CHARTED:
            break
        alike = list(same)
        name = alike[0].setting.preset + " · " + (alike[0].setting.dataset or NONE)
        drawn.append(
            {
                "name": name + (f" · fold {alike[0].setting.fold}" if alike[0].setting.fold else ""),
                "pareto": _pareto(site, f"c{number}", alike),
                "more": _more(f"c{number}m", alike[0]),
                "dots": [(names[id(b)], *_dots(f"c{number}d{i}", b)) for i, b in enumerate(alike[:CHARTED])],
            }
        )
    return drawn


def _pareto(site: Site, prefix: str, boards: Sequence[Board]) -> list[object]:
    costs: tuple[tuple[str, str, Price], ...] = (
        ("params", "parameters of the student", lambda g, _: g.cost.params),
        ("macs", "multiply-accumulates of one sample", lambda g, _: g.cost.macs),
        ("latency", "latency of one sample, ms", lambda g, _: g.latency.mean if g.latency else None),
        ("passes", "training: forward passes, in those of the scratch twin's", passes),
        ("bits", "bits of a weight", lambda g, _: g.cost.bits or FLOAT_BITS),
        ("size", "size of the weights on disk, bytes", lambda g, _: g.cost.packed_bytes or g.cost.bytes),
    )
    drawn: list[object] = []
    for key, label, cost in costs:
        points = [p for board in boards for p in _points(site, board, cost, key, len(boards) > 1)]
        if len({p.x for p in points if p.kind != "teacher"}) < 2 and not any(p.kind == "teacher" for p in points):
            continue
        title = f"{boards[0].primary} over {label}"
        shown = _fewer(points, boards[0].higher_is_better)
        chart = charts.pareto(
            f"{prefix}-{key}",
            shown,
            x_label=label,
            y_label=boards[0].primary,
            title=title,
            higher_is_better=boards[0].higher_is_better,
        )
        if chart:
            drawn.append((chart, title + (f", {len(shown)} of {len(points)} points" if shown is not points else "")))
    return drawn


def _fewer(points: list[Point], higher_is_better: bool) -> list[Point]:
    """Leaves out what is neither among the best for their cost nor among the best, where there are too many."""
    own = [p for p in points if p.kind in ("method", "grey")]
    if len(own) <= POINTS:
        return points
    ahead = charts.front([p for p in own if p.kind == "method"], higher_is_better)
    best = sorted(own, key=lambda p: (p.kind == "grey", -p.y if higher_is_better else p.y))[:POINTS]
    return [*dict.fromkeys([*ahead, *best]), *(p for p in points if p.kind not in ("method", "grey"))]


def _points(site: Site, board: Board, cost: Price, key: str, many: bool) -> list[Point]:
    """Takes the groups of a board, its scratch student and, where its cost is known, the teacher."""
    suffix = f", {board.setting.pair}" if many else ""
    names = common.labels(board)
    found = []
    for group in board.groups:
        value = cost(group, board)
        if group.score is not None and value is not None and not group.reference and group.metric == board.metric:
            kind = "method" if group.enough else "grey"
            axes = [axis for axis in (group.setting.augment, group.setting.quant) if axis != "none"]
            axes += [f"teacher {group.setting.teacher}"] if many and group.setting.teacher else []
            name = " + ".join([names[id(group)], *axes])
            score = group.score
            href = "../" + site.group_page(group)
            found.append(Point(name + suffix, value, score.mean, score.low, score.high, kind, href))
    if key in PACKED:  # a twin is quantised as its student is
        alone = {cost(g, board): g.scratch for g in board.groups if g.metric == board.metric}
    else:
        model: Group = next((g for g in board.groups if g.reference), board.groups[0])
        alone = {1.0 if key == "passes" else cost(model, board): board.scratch.get(board.primary)}
    for at, scratch in alone.items():
        if scratch is not None and at is not None:
            found.append(Point("scratch" + suffix, at, scratch.mean, scratch.low, scratch.high, "scratch"))
    row = max((g.newest for g in board.groups), key=lambda r: ("teacher" in r.models.names, r.finished, r.run_id))
    size = row.figure(key, "teacher") if key in ("params", "macs") else None
    teacher = board.teacher.get(board.primary)
    if size and teacher is not None:
        found.append(Point("teacher" + suffix, float(size), teacher, kind="teacher"))
    return found


def _dots(prefix: str, board: Board) -> tuple[object, object, int]:
    """Draws the differences to the scratch student and to the baseline, one row a group."""
    groups = [g for g in board.groups if not g.reference and g.metric == board.metric]
    names = common.labels(board)
    drawn = []
    for key, label in (("vs_scratch", "scratch"), ("vs_kd", BASELINE)):
        rows: list[Dot] = []
        for group in groups:
            found = getattr(group, key).estimate
            if found is not None and len(rows) < DOTS:
                rows.append(Dot(names[id(group)], found.mean, found.low, found.high, not group.enough))
        title = f"{board.primary}: difference to {label}"
        drawn.append(charts.dots(f"{prefix}-{key}", rows, x_label=title, title=title))
    return drawn[0], drawn[1], len(groups)


# ---- what stands behind the rows -----------------------------------------------------------------------------------


def _more(prefix: str, board: Board) -> list[tuple[Markup, str]]:
    """Draws seeds, places, training and tuning of the rows of the usual tuning, of the first setting of a kind."""
    shown = [g for g in _usual(board) if g.metric == board.metric and g.score is not None][:DOTS]
    counts = Counter(g.method for g in shown)
    names = {id(g): g.method + (f" #{g.spec_hash[:5]}" if counts[g.method] > 1 else "") for g in shown}
    ranked = [(names[id(g)], *g.rank) for g in shown if g.rank is not None]
    scratch = board.scratch.get(board.primary)
    strips = [_strip(names[id(g)], g) for g in shown]
    title = f"{board.primary} of every run"
    drawn = [
        (
            plots.strips(f"{prefix}-seeds", strips, x_label=title, title=title, line=scratch.mean if scratch else None),
            "A dot is a run, the stroke their mean, the bar its 95 % interval; dashed: the student trained alone.",
        ),
        (
            plots.places(f"{prefix}-places", ranked, title="Places that the differences leave open"),
            "From the best to the worst place that the corrected differences leave open, among rows of equal tuning.",
        ),
        _training(f"{prefix}-training", board),
        _tuning(f"{prefix}-tuning", board),
    ]
    return [(chart, caption) for chart, caption in drawn if chart is not None]


def _usual(board: Board) -> list[Group]:
    """Returns the groups that were tuned as most of those with a rank."""
    own = [g for g in board.groups if not g.reference]
    trials = Counter(g.trials for g in own if g.rank is not None) or Counter(g.trials for g in own)
    usual = max(trials, key=lambda n: (trials[n], n), default=0)
    return [g for g in own if g.trials == usual]


def _strip(label: str, group: Group) -> Strip:
    assert group.score is not None
    values = tuple(row.score for row in group.scored if row.score is not None)
    return Strip(label, values, group.score.mean, group.score.low, group.score.high, not group.enough)


def _leading(board: Board) -> list[Group]:
    """Picks what has a line of its own: the student trained alone, the baseline, and the best."""
    first = [g for g in board.groups if g.reference][:1]
    chosen = representatives(board)
    first += [chosen[BASELINE]] if BASELINE in chosen else []
    best = [g for g in board.groups if g is chosen.get(g.method) and g not in first]
    return [*first, *best][: charts.STYLES]


def _training(name: str, board: Board) -> tuple[Markup | None, str]:
    series = [Band(g.method, _validated(g, f"val/{board.primary}")) for g in _leading(board)]
    title = f"Validation {board.primary} by epoch"
    chart = plots.bands(name, series, x_label="epoch", y_label=f"val {board.primary}", title=title)
    return chart, "Mean of all runs with its 95 % band: the student trained alone, the baseline, and the best."


def _validated(group: Group, column: str) -> tuple[tuple[float, float, float, float], ...]:
    """Joins the curves of a group, where every run has a value."""
    lines = [dict(curves.line(curves.of(row.path), column)) for row in group.scored]
    shared = sorted(set.intersection(*map(set, lines))) if lines else []
    return _joined(shared, np.array([[line[x] for x in shared] for line in lines]), len(group.teachers))


def _joined(xs: Sequence[float], values: Floats, teachers: int) -> tuple[tuple[float, float, float, float], ...]:
    found = columns(values) if teachers < 2 else [grid(column.reshape(-1, teachers)) for column in values.T]
    points = [(x, e) for x, e in zip(xs, found, strict=True) if e is not None]
    return tuple(
        (x, e.mean, e.mean if e.low is None else e.low, e.mean if e.high is None else e.high) for x, e in points
    )


def _tuning(name: str, board: Board) -> tuple[Markup | None, str]:
    series = []
    for group in _leading(board):
        points: dict[float, list[float]] = {}
        for row in common.one_of_each_teacher(group):
            for factor, value in row.tried.items():
                points.setdefault(factor, []).append(value)
        if points and min(points) > 0:
            found = ((factor, float(np.mean(values))) for factor, values in sorted(points.items()))
            series.append(Band(group.method, tuple((x, y, y, y) for x, y in found)))
    title = f"Validation {board.primary} by factor on the weights"
    chart = plots.bands(
        name, series, x_label="factor, log scale", y_label=f"val {board.primary}", title=title, log=True
    )
    return chart, "What the trials of tuning scored on validation, before the seeds."


def pairs(name: str, board: Board) -> Table | None:
    """Makes the table of paired differences of every method to every other, row minus column; None for one method.

    A column is corrected for all rows of the setting, as its differences to the baseline are.
    """
    chosen = representatives(board)
    shown = [g for g in board.groups if g is chosen.get(g.method)][:DOTS]
    if len(shown) < 2:
        return None
    trials = shown[0].trials
    same = [g for g in board.groups if not g.reference and (g.trials, g.metric) == (trials, board.metric)]
    families, at = Families(same), {id(g): i for i, g in enumerate(same)}
    places = common.digits(g.score.mean for g in shown if g.score is not None)
    head = (Column(f"minus_{g.method}", g.method, f"Paired difference to {g.method}.", "estimate") for g in shown)
    caption = f"{board.primary}: row minus column, with simultaneous 95% intervals; colour survives the correction"
    table = Table(name, caption, [Column("method", "Method"), *head])
    for own in shown:
        cells = (_pair(families, at[id(own)], at[id(other)], board, places) for other in shown)
        table.add(Cell(own.method), *cells)
    return table


def _pair(families: Families, own: int, other: int, board: Board, places: int) -> Cell:
    if own == other:
        return Cell()
    found = families.between(own, other)
    if found is None:
        return Cell(note="no seeds of the same scratch twins and teachers")
    contrast, family = found
    better = (contrast.mean > 0) == board.higher_is_better
    css = ("good" if better else "bad") if contrast.resolved else ""
    note = f"p = {contrast.p:.2g} corrected for {family} comparisons"
    return Cell(
        common.fixed(contrast.mean, places, True), contrast.mean, contrast.low, contrast.high, note=note, css=css
    )
