"""Charts as SVG text, drawn when the site is built: no script, sized by the page, coloured by its style sheet.

Every chart is 440 units wide, so that its text stays readable on a telephone, says what it shows in ``title`` and
``desc``, and is the same bytes for the same data. Colours are classes (``assets/site.css``): dark mode and print cost
nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 440
#: Approximate width of a character of the labels.
CHAR = 5.7
#: How many series have a line style of their own.
STYLES = 6


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a scatter plot.

    Attributes:
        label: Name, drawn on the front and on references, else shown on hovering.
        x: Cost.
        y: Quality.
        low: Lower end of the interval of ``y``; None draws no bar.
        high: Upper end.
        kind: ``method``, ``grey`` (too few seeds), ``teacher`` or ``scratch``.
        href: Page that a click opens.
    """

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    kind: str = "method"
    href: str | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """A row of a dot plot: a value with its interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    grey: bool = False


def short(value: float) -> str:
    """Writes a number in at most about five characters: 12.3, 0.045, 1.2M."""
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}".replace("-", "−")
    text = f"{value:.3g}" if 1e-3 <= size < 1e3 else f"{value:.0f}" if size >= 1e3 else f"{value:.2g}"
    return text.replace("-", "−")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers that span ``low`` to ``high``, about ``count`` of them within."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2, 5 of each power of ten within ``low`` to ``high``, fewer where they span much."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks: tuple[int, ...] = (1,) if last - first > 4 else (1, 3) if last - first > 2 else (1, 2, 5)
    found = [m * 10.0**p for p in range(first, last + 1) for m in marks if low <= m * 10.0**p <= high]
    return found if len(found) >= 2 else ticks(low, high, 4)


def spread(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Returns the ends of an axis that shows values, with a share of it free at both ends."""
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def fixed(value: float) -> str:
    """Writes a coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def write(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    """Writes text at a place, in classes of the style sheet."""
    css = f' class="{kind}"' if kind else ""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{fixed(x)}" y="{fixed(y)}"{side}{css}>{escape(text)}</text>'


def svg(name: str, height: float, title: str, desc: str, body: Iterable[str], kind: str) -> Markup:
    """Joins the parts of a chart; ``name`` is unique on its page."""
    # Parts of an image are not read out one by one, so the description carries the content.
    return Markup(
        f'<svg class="chart {kind}" viewBox="0 0 {WIDTH} {fixed(height)}" role="img" '
        f'aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(desc)}</desc>'
        f"{''.join(body)}</svg>"
    )


def clip(text: str, width: float) -> str:
    """Shortens a label to a width in units."""
    most = max(4, int(width / CHAR))
    return text if len(text) <= most else text[: most - 1] + "…"


def front(points: Sequence[Point], better: bool) -> list[Point]:
    """Returns the points that none beats in both, by rising cost."""
    sign = 1.0 if better else -1.0
    best, found = -math.inf, []
    for point in sorted(points, key=lambda p: (p.x, -sign * p.y, p.label)):
        if sign * point.y > best:
            best = sign * point.y
            found.append(point)
    return found


class Axes:
    """A frame with a linear vertical and a linear or logarithmic horizontal axis."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        log: bool = False,
        height: float = 250.0,
        left: float = 46.0,
        right: float = 12.0,
        top: float = 26.0,
        bottom: float = 40.0,
    ) -> None:
        self.x_range, self.y_range, self.log = x, y, log
        self.left, self.right, self.top, self.bottom, self.height = left, WIDTH - right, top, height - bottom, height
        self._move: Callable[[float], float] = math.log10 if log else float

    def x(self, value: float) -> float:
        low, high = map(self._move, self.x_range)
        return self.left + (self._move(value) - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def frame(self, x_label: str, y_label: str) -> list[str]:
        grid, labels = [], []
        for value in ticks(*self.y_range):
            grid.append(f"M{fixed(self.left)} {fixed(self.y(value))}H{fixed(self.right)}")
            labels.append(write(self.left - 6, self.y(value) + 3.5, short(value), "end", "tick"))
        end = -math.inf
        for value in log_ticks(*self.x_range) if self.log else ticks(*self.x_range):
            at, text = self.x(value), short(value)
            half = len(text) * CHAR / 2
            if at - half < end + 4:
                continue
            end = at + half
            labels.append(write(at, self.bottom + 15, text, "middle", "tick"))
        return [
            f'<path class="grid" d="{"".join(grid)}"/>',
            f'<path class="axis" d="M{fixed(self.left)} {fixed(self.bottom)}H{fixed(self.right)}"/>',
            *labels,
            write(2, 12, y_label, kind="name"),
            write(self.right, self.height - 6, x_label, "end", "name"),
        ]


def _mark(point: Point, x: float, y: float) -> str:
    value = f"{point.label}: {short(point.y)}"
    if point.low is not None and point.high is not None:
        value += f" [{short(point.low)}, {short(point.high)}]"
    title = f"<title>{escape(value)} at {short(point.x)}</title>"
    link = f' data-href="{escape(point.href)}"' if point.href else ""
    if point.kind == "teacher":
        shape = f"M{fixed(x)} {fixed(y - 5)}l5 5-5 5-5-5z"
    elif point.kind == "scratch":
        shape = f"M{fixed(x - 4)} {fixed(y - 4)}h8v8h-8z"
    else:
        return f'<circle class="{point.kind}"{link} cx="{fixed(x)}" cy="{fixed(y)}" r="3.6">{title}</circle>'
    return f'<path class="{point.kind}" d="{shape}">{title}</path>'


def _labels(points: Sequence[Point], axes: Axes, taken: list[tuple[float, float, float, float]]) -> list[str]:
    """Writes names beside their points, each where it covers no other name; one without a place stays a tooltip."""
    drawn = []
    for point in points:
        x, y, text = axes.x(point.x), axes.y(point.y), clip(point.label, 170)
        width = len(text) * CHAR
        for anchor, dx, dy in (("start", 7, -5), ("end", -7, -5), ("start", 7, 12), ("end", -7, 12), ("middle", 0, -9)):
            at = x + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = (at, y + dy - 9, at + width, y + dy + 2)
            if box[0] < 2 or box[2] > WIDTH - 2 or box[1] < 14 or box[3] > axes.bottom:
                continue
            if all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken):
                taken.append(box)
                drawn.append(write(x + dx, y + dy, text, anchor, f"label {point.kind}"))
                break
    return drawn


def pareto(
    name: str, points: Sequence[Point], *, x_label: str, y_label: str, title: str, higher_is_better: bool = True
) -> Markup | None:
    """Draws quality over cost, with the front of what no other point beats in both.

    Args:
        name: Unique on its page.
        points: Those of kind ``method`` and ``scratch`` make the front; ``grey`` ones and teachers do not.
        x_label: Cost and unit; lower is better.
        y_label: Metric.
        title: Of the chart.
        higher_is_better: Direction of the metric.

    Returns:
        None where fewer than two points have both.
    """
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if len(points) < 2:
        return None
    log = min(p.x for p in points) > 0 and max(p.x for p in points) / min(p.x for p in points) > 3
    # Intervals of two seeds may be a hundred times the rest: they may widen the axis by half, no more.
    low, high = spread([p.y for p in points])
    ends = [e for p in points for e in (p.low, p.high) if e is not None]
    room = (high - low) / 2
    y_range = (min([low, *(e for e in ends if e > low - room)]), max([high, *(e for e in ends if e < high + room)]))
    xs = [p.x for p in points]
    # Costs that hardly differ must not look as if they did.
    middle = (min(xs) + max(xs)) / 2
    x_range = (min(xs) / 1.25, max(xs) * 1.25) if log else spread([*xs, 0.9 * middle, 1.1 * middle], 0.1)
    axes = Axes(x_range, y_range, log=log)
    best = front([p for p in points if p.kind in ("method", "scratch")], higher_is_better)
    bars = "".join(
        f"M{fixed(axes.x(p.x))} {fixed(axes.y(max(p.low, y_range[0])))}V{fixed(axes.y(min(p.high, y_range[1])))}"
        for p in points
        if p.low is not None and p.high is not None
    )
    steps = "".join(
        f"{'H' if i else 'M'}{fixed(axes.x(p.x))}{'V' if i else ' '}{fixed(axes.y(p.y))}" for i, p in enumerate(best)
    )
    marks = [_mark(p, axes.x(p.x), axes.y(p.y)) for p in sorted(points, key=lambda p: p.kind != "grey")]
    named = [*(p for p in points if p.kind == "teacher"), *reversed(best), *(p for p in points if p.kind == "scratch")]
    taken = [(axes.x(p.x) - 4, axes.y(p.y) - 4, axes.x(p.x) + 4, axes.y(p.y) + 4) for p in points]
    unique = list(dict.fromkeys(p for p in named))
    desc = f"{len(points)} points; the best for their cost, by rising cost: " + "; ".join(
        f"{p.label} ({short(p.x)}, {short(p.y)})" for p in best[:12]
    )
    body = [
        *axes.frame(x_label + (", log scale" if log else ""), y_label),
        f'<path class="bars" d="{bars}"/>',
        f'<path class="front" d="{steps}H{fixed(axes.right)}"/>',
        *marks,
        *_labels(unique, axes, taken),
    ]
    return svg(name, axes.height, title, desc, body, "pareto")


def dots(
    name: str, rows: Sequence[Dot], *, x_label: str, title: str, zero: float | None = 0.0, gutter: float = 132.0
) -> Markup | None:
    """Draws values with intervals, one row each, and a line at ``zero``.

    Args:
        name: Unique on its page.
        rows: From top to bottom.
        x_label: Quantity and unit.
        title: Of the chart.
        zero: Where the reference line is; None draws none.
        gutter: Width of the names.

    Returns:
        None without rows.
    """
    if not rows:
        return None
    low, high = spread([r.value for r in rows] + ([] if zero is None else [zero]), 0.08)
    room = high - low
    ends = [e for r in rows for e in (r.low, r.high) if e is not None]
    low, high = min([low, *(e for e in ends if e > low - room)]), max([high, *(e for e in ends if e < high + room)])
    pitch, top = 18.0, 8.0
    height = top + pitch * len(rows) + 38
    axes = Axes((low, high), (0, 1), height=height, left=gutter, top=top, bottom=34, right=14)
    body = []
    grid = "".join(f"M{fixed(axes.x(v))} {fixed(top)}V{fixed(axes.bottom)}" for v in ticks(low, high))
    body.append(f'<path class="grid" d="{grid}"/>')
    body += [write(axes.x(v), axes.bottom + 14, short(v), "middle", "tick") for v in ticks(low, high)]
    if zero is not None and low <= zero <= high:
        body.append(f'<path class="zero" d="M{fixed(axes.x(zero))} {fixed(top)}V{fixed(axes.bottom)}"/>')
    for i, row in enumerate(rows):
        y = top + pitch * (i + 0.5)
        kind = "grey" if row.grey else "method"
        value = short(row.value)
        body.append(write(gutter - 8, y + 3.5, clip(row.label, gutter - 10), "end", f"row {kind}"))
        if row.low is not None and row.high is not None:
            value += f" [{short(row.low)}, {short(row.high)}]"
            left, right = axes.x(max(row.low, low)), axes.x(min(row.high, high))
            body.append(f'<path class="bar {kind}" d="M{fixed(left)} {fixed(y)}H{fixed(right)}"/>')
        body.append(
            f'<circle class="{kind}" cx="{fixed(axes.x(row.value))}" cy="{fixed(y)}" r="3.6">'
            f"<title>{escape(row.label)}: {escape(value)}</title></circle>"
        )
    body.append(write(axes.right, height - 5, x_label, "end", "name"))
    desc = "; ".join(f"{r.label} {short(r.value)}" for r in rows[:40])
    return svg(name, height, title, desc, body, "dots")


def curves(
    name: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, x_label: str, y_label: str, title: str
) -> Markup | None:
    """Draws lines over epochs, each named at its end.

    Args:
        name: Unique on its page.
        series: Names and their ``(x, y)``, at most :data:`STYLES` of them are told apart.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.
        title: Of the chart.

    Returns:
        None where no series has points at two places.
    """
    series = [(label, [p for p in line if math.isfinite(p[1])]) for label, line in series]
    series = [(label, line) for label, line in series if len({x for x, _ in line}) > 1]
    if not series:
        return None
    x = [p[0] for _, line in series for p in line]
    y_range = spread([p[1] for _, line in series for p in line])
    longest = min(130.0, max(len(label) for label, _ in series) * CHAR + 10)
    axes = Axes((min(x), max(x)), y_range, height=210, right=longest)
    body = axes.frame(x_label, y_label)
    ends = sorted((axes.y(line[-1][1]), i) for i, (_, line) in enumerate(series))
    places: dict[int, float] = {}
    lowest = -math.inf
    for y, i in ends:
        lowest = places[i] = max(y, lowest + 12)
    over = max(0.0, lowest - axes.bottom)
    for i, (label, line) in enumerate(series):
        path = "".join(f"{'L' if j else 'M'}{fixed(axes.x(a))} {fixed(axes.y(b))}" for j, (a, b) in enumerate(line))
        style = f"s{i % STYLES}"
        body.append(f'<path class="line {style}" d="{path}"><title>{escape(label)}</title></path>')
        body.append(write(axes.right + 5, places[i] - over + 3.5, clip(label, longest - 6), kind=f"label {style}"))
    desc = "; ".join(f"{label}: from {short(line[0][1])} to {short(line[-1][1])}" for label, line in series)
    return svg(name, axes.height, title, desc, body, "curves")


def shares(name: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str) -> Markup | None:
    """Draws one bar for each row, divided in proportion to its parts.

    Args:
        name: Unique on its page.
        rows: Names and their parts: a name and a size, each row with the same parts in the same order.
        title: Of the chart.

    Returns:
        None where no row has a positive sum.
    """
    rows = [(label, [(n, abs(v)) for n, v in parts]) for label, parts in rows]
    rows = [(label, parts) for label, parts in rows if sum(v for _, v in parts) > 0]
    if not rows:
        return None
    left, pitch, body, told = 48.0, 26.0, [], []
    for i, (label, parts) in enumerate(rows):
        y, at, total = 6 + pitch * i, left, sum(v for _, v in parts)
        body.append(write(left - 8, y + 13, label, "end", "tick"))
        for j, (part, value) in enumerate(parts):
            width = (WIDTH - left - 2) * value / total
            text = f"{part} {100 * value / total:.0f} %"
            body.append(
                f'<rect class="share s{j % STYLES}" x="{fixed(at)}" y="{fixed(y)}" width="{fixed(width)}" height="18">'
                f"<title>{escape(label)}: {escape(text)}</title></rect>"
            )
            at += width
        told.append(f"{label}: " + ", ".join(f"{p} {100 * v / total:.0f} %" for p, v in parts))
    y, at = 6 + pitch * len(rows) + 12, left
    for j, (part, _) in enumerate(rows[0][1]):
        text = clip(part, 150)
        if at + 16 + len(text) * CHAR > WIDTH and at > left:
            y, at = y + 16, left
        body.append(f'<rect class="share s{j % STYLES}" x="{fixed(at)}" y="{fixed(y - 9)}" width="10" height="10"/>')
        body.append(write(at + 14, y, text, kind="tick"))
        at += 28 + len(text) * CHAR
    return svg(name, y + 8, title, "; ".join(told), body, "shares")


def critical_difference(name: str, ranks: Sequence[tuple[str, float]], difference: float, *, title: str) -> Markup:
    """Draws average ranks on a line, best at the left; a bar joins those that cannot be told apart.

    Args:
        name: Unique on its page.
        ranks: Methods with their average ranks.
        difference: Ranks closer than this are joined.
        title: Of the chart.
    """
    order = sorted(ranks, key=lambda item: (item[1], item[0]))
    top, pitch = 40.0, 16.0
    axes = Axes((1, max(2.0, float(len(order)))), (0, 1), height=100, left=130, right=130, top=top)
    half = (len(order) + 1) // 2
    joined: list[tuple[int, int]] = []
    for i in range(len(order)):
        j = max(k for k in range(i, len(order)) if order[k][1] - order[i][1] < difference)
        if j > i and (not joined or j > joined[-1][1]):
            joined.append((i, j))
    base = top + 8 + 6 * len(joined)
    height = base + pitch * half + 14
    scale = range(1, len(order) + 1, max(1, len(order) // 8))
    body = [f'<path class="axis" d="M{fixed(axes.left)} {fixed(top)}H{fixed(axes.right)}"/>']
    body += [write(axes.x(v), top - 8, str(v), "middle", "tick") for v in scale]
    for row, (i, j) in enumerate(joined):
        start, stop = axes.x(order[i][1]) - 3, axes.x(order[j][1]) + 3
        body.append(f'<path class="clique" d="M{fixed(start)} {fixed(top + 8 + 6 * row)}H{fixed(stop)}"/>')
    for i, (label, rank) in enumerate(order):
        left = i < half
        y = base + pitch * (i if left else len(order) - 1 - i) + 8
        end, anchor = (axes.left - 6, "end") if left else (axes.right + 6, "start")
        body.append(f'<path class="stem" d="M{fixed(axes.x(rank))} {fixed(top)}V{fixed(y)}H{fixed(end)}"/>')
        body.append(write(end + (-4 if left else 4), y + 3.5, f"{clip(label, 90)} {rank:.1f}", anchor, "label"))
    length = difference / max(1.0, len(order) - 1.0) * (axes.right - axes.left)
    body.append(f'<path class="clique" d="M{fixed(axes.left)} 8h{fixed(min(length, axes.right - axes.left))}"/>')
    body.append(write(axes.left, 22, f"critical difference {difference:.2f}", kind="tick"))
    desc = "Average ranks: " + "; ".join(f"{label} {rank:.2f}" for label, rank in order)
    return svg(name, height, title, desc, body, "cd")
