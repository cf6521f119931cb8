from __future__ import annotations

import math
import re

from leaderboard import plots
from leaderboard.plots import Band, Strip
from tests.leaderboard.test_charts import HOSTILE, SPACE, parse, texts


def marks(svg: object, kind: str) -> list[str]:
    return re.findall(rf'<(?:path|circle) class="{kind}[^>]*>', str(svg))


def test_strips_have_a_dot_for_every_seed_and_the_mean_with_its_interval() -> None:
    rows = [Strip("kd", (1.0, 2.0, 3.0), 2.0, -0.5, 4.5), Strip(HOSTILE, (2.5,), 2.5, grey=True)]
    svg = plots.strips("s", rows, x_label="top1", title="seeds", line=1.5)
    root = parse(svg)
    assert len(marks(svg, "one")) == 4
    assert (len(marks(svg, "mean method")), len(marks(svg, "mean grey")), len(marks(svg, "bar"))) == (1, 1, 1)
    assert "kd" in texts(root)
    titles = [node.text for node in root.iter(f"{SPACE}title")]
    assert "kd: 2 [−0.5, 4.5], of 1, 2, 3" in titles
    # The interval is cut at the frame, whose ends the seeds decide.
    ends = [float(x) for x in re.findall(r"[MH]([\d.]+)", marks(svg, "bar method")[0])]
    assert 132 <= ends[0] < ends[1] <= 426
    assert plots.strips("s", [], x_label="x", title="x") is None


def test_places_are_bars_from_best_to_worst() -> None:
    svg = plots.places("p", [("a", 1, 2), (HOSTILE, 1, 3), ("c", 3, 3)], title="places")
    root = parse(svg)
    widths = []
    for mark in marks(svg, "place"):
        left, right = (float(x) for x in re.findall(r"[MH]([\d.]+)", mark))
        widths.append(right - left)
    assert widths[1] > widths[0] > widths[2] > 0
    titles = [node.text for node in root.iter(f"{SPACE}title")]
    assert "a: places 1 to 2" in titles
    assert "c: place 3" in titles
    assert plots.places("p", [("a", 1, 1)], title="one alone has no place") is None


def test_bands_surround_their_line_where_there_are_ends() -> None:
    wide = Band("kd", tuple((float(x), 2.0 * x, 2.0 * x - 1, 2.0 * x + 1) for x in range(5)))
    flat = Band(HOSTILE, tuple((float(x), 3.0, 3.0, 3.0) for x in range(5)))
    svg = plots.bands("b", [wide, flat, Band("one", ((0.0, 1.0, 1.0, 1.0),))], x_label="x", y_label="y", title="t")
    parse(svg)
    assert (len(marks(svg, "line")), len(marks(svg, "band"))) == (2, 1)
    assert plots.bands("b", [], x_label="x", y_label="y", title="t") is None
    many = [Band(f"m{i}", wide.points) for i in range(9)]
    assert len(marks(plots.bands("b", many, x_label="x", y_label="y", title="t"), "line")) == 6


def test_a_band_without_end_does_not_flatten_the_lines() -> None:
    huge = Band("two seeds", ((0.0, 1.0, -1e6, 1e6), (1.0, 2.0, 1.5, 2.5)))
    svg = plots.bands("b", [huge], x_label="x", y_label="y", title="t")
    line = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", marks(svg, "line")[0])]
    assert line[0] - line[1] > 20


def test_factors_are_on_a_log_scale() -> None:
    points = tuple((10.0**i, float(i), float(i), float(i)) for i in range(-2, 2))
    svg = plots.bands("b", [Band("kd", points)], x_label="factor", y_label="y", title="t", log=True)
    xs = [float(x) for x in re.findall(r"[ML]([\d.]+) ", marks(svg, "line")[0])]
    steps = [b - a for a, b in zip(xs, xs[1:], strict=False)]
    assert all(math.isclose(step, steps[0], abs_tol=0.11) for step in steps)
