"""Charts of what stands behind a row: its seeds, its places, its training, its tuning; drawn as in :mod:`.charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from leaderboard.charts import CHAR, STYLES, WIDTH, Axes, clip, fixed, short, spread, svg, ticks, write

#: Height of a row, and what is above the first one.
PITCH, TOP = 18.0, 8.0


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of single values with their mean and its interval."""

    label: str
    values: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None
    grey: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A line with a band around it: ``(x, y, low, high)``; equal ends are no band."""

    label: str
    points: tuple[tuple[float, float, float, float], ...]


def strips(
    name: str, rows: Sequence[Strip], *, x_label: str, title: str, line: float | None = None, gutter: float = 132.0
) -> Markup | None:
    """Draws every value as a dot, with the mean of each row and its interval, and a line to compare with.

    Args:
        name: Unique on its page.
        rows: From top to bottom.
        x_label: Quantity and unit.
        title: Of the chart.
        line: Where the line is.
        gutter: Width of the names.

    Returns:
        None without rows.
    """
    if not rows:
        return None
    low, high = spread([v for r in rows for v in r.values] + ([] if line is None else [line]), 0.05)
    axes, body, height = _rows(len(rows), low, high, gutter)
    if line is not None:
        body.append(f'<path class="zero" d="M{fixed(axes.x(line))} {fixed(TOP)}V{fixed(axes.bottom)}"/>')
    for i, row in enumerate(rows):
        y, kind = TOP + PITCH * (i + 0.5), "grey" if row.grey else "method"
        said = short(row.mean)
        body.append(write(gutter - 8, y + 3.5, clip(row.label, gutter - 10), "end", f"row {kind}"))
        if row.low is not None and row.high is not None:
            said += f" [{short(row.low)}, {short(row.high)}]"
            left, right = axes.x(max(row.low, low)), axes.x(min(row.high, high))
            body.append(f'<path class="bar {kind}" d="M{fixed(left)} {fixed(y)}H{fixed(right)}"/>')
        body += [f'<circle class="one" cx="{fixed(axes.x(v))}" cy="{fixed(y)}" r="2.2"/>' for v in row.values]
        values = ", ".join(map(short, row.values))
        body.append(f'<path class="mean {kind}" d="M{fixed(axes.x(row.mean))} {fixed(y - 5)}v10"/>')
        body.append(_told(f"{row.label}: {said}, of {values}", y))
    body.append(write(axes.right, height - 5, x_label, "end", "name"))
    return svg(name, height, title, "; ".join(f"{r.label} {short(r.mean)}" for r in rows), body, "strips")


def places(name: str, rows: Sequence[tuple[str, int, int]], *, title: str, gutter: float = 132.0) -> Markup | None:
    """Draws the places that each method may have, from the best to the worst.

    Args:
        name: Unique on its page.
        rows: Names with their best and their worst place, from top to bottom.
        title: Of the chart.
        gutter: Width of the names.

    Returns:
        None for fewer than two rows.
    """
    if len(rows) < 2:
        return None
    axes, body, height = _rows(len(rows), 0.5, max(worst for *_, worst in rows) + 0.5, gutter)
    for i, (label, best, worst) in enumerate(rows):
        y = TOP + PITCH * (i + 0.5)
        said = f"place {best}" if best == worst else f"places {best} to {worst}"
        body.append(write(gutter - 8, y + 3.5, clip(label, gutter - 10), "end", "row method"))
        body.append(f'<path class="place" d="M{fixed(axes.x(best - 0.35))} {fixed(y)}H{fixed(axes.x(worst + 0.35))}"/>')
        body.append(_told(f"{label}: {said}", y))
    body.append(write(axes.right, height - 5, "place, 1 is best", "end", "name"))
    desc = "; ".join(f"{label} {best} to {worst}" for label, best, worst in rows)
    return svg(name, height, title, desc, body, "places")


def _rows(count: int, low: float, high: float, gutter: float) -> tuple[Axes, list[str], float]:
    height = TOP + PITCH * count + 38
    axes = Axes((low, high), (0, 1), height=height, left=gutter, top=TOP, bottom=34, right=14)
    grid = "".join(f"M{fixed(axes.x(v))} {fixed(TOP)}V{fixed(axes.bottom)}" for v in ticks(low, high))
    marks = [write(axes.x(v), axes.bottom + 14, short(v), "middle", "tick") for v in ticks(low, high)]
    return axes, [f'<path class="grid" d="{grid}"/>', *marks], height


def _told(text: str, y: float) -> str:
    """Says what a row is wherever it is pointed at: its marks are thin."""
    return (
        f'<rect class="hit" x="0" y="{fixed(y - PITCH / 2)}" width="{WIDTH}" height="{fixed(PITCH)}">'
        f"<title>{escape(text)}</title></rect>"
    )


def bands(
    name: str, series: Sequence[Band], *, x_label: str, y_label: str, title: str, log: bool = False
) -> Markup | None:
    """Draws lines with bands, each named at its end.

    Args:
        name: Unique on its page.
        series: At most :data:`~leaderboard.charts.STYLES` of them are told apart.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.
        title: Of the chart.
        log: Whether the horizontal axis is logarithmic; all of it is above zero then.

    Returns:
        None where no line has points at two places.
    """
    series = [one for one in series[:STYLES] if len({x for x, *_ in one.points}) > 1]
    if not series:
        return None
    xs = [x for one in series for x, *_ in one.points]
    low, high = spread([y for one in series for _, y, _, _ in one.points])
    room = high - low  # a band of two seeds may be a hundred times the rest
    ends = [e for one in series for _, _, *both in one.points for e in both]
    low, high = min([low, *(e for e in ends if e > low - room)]), max([high, *(e for e in ends if e < high + room)])
    longest = min(130.0, max(len(one.label) for one in series) * CHAR + 10)
    axes = Axes((min(xs), max(xs)), (low, high), log=log, height=230, right=longest)
    body = axes.frame(x_label, y_label)
    order = sorted((axes.y(one.points[-1][1]), i) for i, one in enumerate(series))
    at: dict[int, float] = {}
    lowest = -math.inf
    for y, i in order:
        lowest = at[i] = max(y, lowest + 12)
    over = max(0.0, lowest - axes.bottom)
    lines = []
    for i, one in enumerate(series):
        style = f"s{i % STYLES}"
        up = [(axes.x(x), axes.y(min(top, high))) for x, _, _, top in one.points]
        down = [(axes.x(x), axes.y(max(bottom, low))) for x, _, bottom, _ in reversed(one.points)]
        if any(bottom < top for _, _, bottom, top in one.points):
            body.append(f'<path class="band {style}" d="{_path([*up, *down])}Z"/>')
        path = _path([(axes.x(x), axes.y(y)) for x, y, _, _ in one.points])
        said = f"{one.label}: {short(one.points[-1][1])} at the end"
        lines.append(f'<path class="line {style}" d="{path}"><title>{escape(said)}</title></path>')
        label = clip(one.label, longest - 6)
        lines.append(write(axes.right + 5, at[i] - over + 3.5, label, kind=f"label {style}"))
    desc = "; ".join(f"{o.label}: from {short(o.points[0][1])} to {short(o.points[-1][1])}" for o in series)
    return svg(name, axes.height, title, desc, [*body, *lines], "curves")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{fixed(x)} {fixed(y)}" for i, (x, y) in enumerate(points))
