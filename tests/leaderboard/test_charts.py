from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from leaderboard import charts
from leaderboard.charts import Dot, Point

HOSTILE = '<script>alert(1)</script>"&'
SPACE = "{http://www.w3.org/2000/svg}"


def parse(svg: Markup | None) -> ElementTree.Element:
    assert svg is not None
    root = ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.get("role") == "img"
    title, desc = root.find(f"{SPACE}title"), root.find(f"{SPACE}desc")
    assert title is not None
    assert title.text
    assert desc is not None
    assert desc.text
    assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
    assert root.findall(f".//{SPACE}script") == []
    assert "nan" not in svg
    assert "inf" not in re.sub(r"<(title|desc)[^>]*>.*?</\1>", "", svg)
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in root.iter(f"{SPACE}text")]


def scatter(n: int = 30) -> list[Point]:
    values = [(math.sin(i) + 1.5, 60 + 10 * math.cos(3 * i)) for i in range(n)]
    return [Point(f"m{i}", 1e5 * x, y, y - 1, y + 1) for i, (x, y) in enumerate(values)]


def test_pareto_marks_every_point_and_names_the_front() -> None:
    points = [*scatter(), Point("few", 1e5, 50, kind="grey"), Point("teacher", 5e6, 80, kind="teacher")]
    points.append(Point("scratch", 2e5, 55, 54, 56, "scratch"))
    root = parse(charts.pareto("p", points, x_label="parameters", y_label="top1", title="t"))
    assert len(root.findall(f".//{SPACE}circle")) == 31
    assert len(root.findall(f".//{SPACE}circle[@class='grey']")) == 1
    best = charts.front([p for p in points if p.kind in ("method", "scratch")], True)
    assert best[-1].label in texts(root)
    assert "teacher" in texts(root)
    assert "parameters, log scale" in texts(root)


@pytest.mark.parametrize("better", [True, False])
def test_the_front_is_what_nothing_beats(better: bool) -> None:
    points, sign = scatter(), 1 if better else -1
    best = charts.front(points, better)
    for point in points:
        beaten = any(p.x <= point.x and sign * p.y > sign * point.y for p in points)
        assert (point in best) is not beaten


def test_everything_stays_inside_the_frame() -> None:
    points = [*scatter(), Point("wild", 2e5, 60, -1e9, 1e9)]
    root = parse(charts.pareto("p", points, x_label="x", y_label="y", title="t"))
    for circle in root.iter(f"{SPACE}circle"):
        assert 40 <= float(circle.get("cx", "")) <= charts.WIDTH
        assert 20 <= float(circle.get("cy", "")) <= 215
    bars = next(p.get("d", "") for p in root.iter(f"{SPACE}path") if p.get("class") == "bars")
    assert all(0 <= float(y) <= 250 for y in re.findall(r"V([-\d.]+)", bars))


def test_text_of_strangers_is_escaped_everywhere() -> None:
    point = [Point(HOSTILE, 1, 2, href=HOSTILE), Point("b", 30, 4)]
    found = [
        charts.pareto("p", point, x_label=HOSTILE, y_label=HOSTILE, title=HOSTILE),
        charts.dots("d", [Dot(HOSTILE, 1.0)], x_label=HOSTILE, title=HOSTILE),
        charts.curves("c", [(HOSTILE, [(0, 1.0), (1, 2.0)])], x_label=HOSTILE, y_label=HOSTILE, title=HOSTILE),
        charts.shares("s", [(HOSTILE, [(HOSTILE, 1.0)])], title=HOSTILE),
        charts.critical_difference("cd", [(HOSTILE, 1.0), ("b", 2.0)], 0.5, title=HOSTILE),
    ]
    for svg in found:
        assert svg is not None
        assert "<script" not in svg
        parse(svg)


def test_nothing_to_draw_is_none() -> None:
    assert charts.pareto("p", scatter(1), x_label="x", y_label="y", title="t") is None
    assert charts.dots("d", [], x_label="x", title="t") is None
    assert charts.curves("c", [("a", [(0, 1.0)])], x_label="x", y_label="y", title="t") is None
    assert charts.shares("s", [("first", [("a", 0.0)])], title="t") is None


def test_dots_draw_intervals_and_zero() -> None:
    rows = [Dot("a", 1.0, 0.5, 1.5), Dot("b", -1.0, grey=True), Dot("c", 0.2, -1e6, 1e6)]
    root = parse(charts.dots("d", rows, x_label="x", title="t"))
    kinds = [path.get("class") for path in root.iter(f"{SPACE}path")]
    assert kinds.count("bar method") == 2
    assert kinds.count("zero") == 1
    assert len(root.findall(f".//{SPACE}circle[@class='grey']")) == 1


def test_curves_name_lines_at_their_ends_without_overlap() -> None:
    series = [(f"term{i}", [(e, 1.0 + 0.001 * i) for e in range(5)]) for i in range(6)]
    root = parse(charts.curves("c", [*series, ("gone", [(0, math.nan)])], x_label="e", y_label="y", title="t"))
    ends = sorted(float(n.get("y", "")) for n in root.iter(f"{SPACE}text") if (n.text or "").startswith("term"))
    assert len(ends) == 6
    assert all(b - a >= 11 for a, b in zip(ends, ends[1:], strict=False))


def test_shares_add_up() -> None:
    rows = [("first", [("task", 3.0), ("kd", 1.0)]), ("last", [("task", 1.0), ("kd", 1.0)])]
    root = parse(charts.shares("s", rows, title="t"))
    widths = [float(r.get("width", "")) for r in root.iter(f"{SPACE}rect")][:4]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.2)
    assert widths[2] == pytest.approx(widths[3], abs=0.1)


def test_critical_difference_joins_what_is_closer() -> None:
    ranks = [("a", 1.2), ("b", 1.9), ("c", 3.4), ("d", 3.5)]
    root = parse(charts.critical_difference("cd", ranks, 1.0, title="t"))
    cliques = [p for p in root.iter(f"{SPACE}path") if p.get("class") == "clique"]
    assert len(cliques) == 3, "a-b, c-d and the scale"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 912), (0.001, 0.0017), (70, 79.5), (-1e-9, 1e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_short_numbers() -> None:
    shown = [charts.short(v) for v in (0, 0.045, 12.345, 999, 1234, 308_680, 4_834_888, 2e9, -0.5)]
    assert shown == ["0", "0.045", "12.3", "999", "1234", "309k", "4.83M", "2G", "−0.5"]


def test_the_same_data_gives_the_same_bytes() -> None:
    draw = [charts.pareto("p", scatter(), x_label="x", y_label="y", title="t") for _ in range(2)]
    assert draw[0] == draw[1]
