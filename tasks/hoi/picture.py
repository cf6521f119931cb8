"""Pictures of a video: what is true and what each model says, as a timeline for each person and object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from tasks.hoi.layout import UNKNOWN

#: Videos that are shown.
SHOWN = 3
WIDTH, DPI = 15.0, 100
#: Height of a line of a timeline, and what goes above and below a video's, inches.
LINE, AROUND = 0.21, 0.75
TRUTH = "truth"
NOBODY = "#e6e6e6"


@dataclass(frozen=True)
class Track:
    """One person or object of a video.

    Attributes:
        name: What it is called.
        truth: ``(T,)`` labels, :data:`UNKNOWN` where there is none.
        found: ``(T,)`` labels by model.
        classes: Names of the labels.
        kind: Tracks of one kind share their colours.
    """

    name: str
    truth: np.ndarray | None
    found: Mapping[str, np.ndarray]
    classes: Sequence[str]
    kind: str


@dataclass(frozen=True)
class Row:
    """A video.

    Attributes:
        name: Its title.
        tracks: People first.
        attention: ``(K, T)`` how much the first person attends to each track at each step, or None.
    """

    name: str
    tracks: Sequence[Track]
    attention: np.ndarray | None = None

    @property
    def apart(self) -> float:
        """Share of the labelled steps on which the last two models differ."""
        differ, known = 0, 0
        for track in self.tracks:
            if track.truth is None or len(track.found) < 2:
                continue
            *_, other, last = track.found.values()
            here = track.truth != UNKNOWN
            differ += int(((other != last) & here).sum())
            known += int(here.sum())
        return differ / max(known, 1)


def render(rows: Sequence[Row], watched: str = "") -> Image.Image:
    """Draws the videos on which the last two models differ most.

    Args:
        rows: At least one.
        watched: The model whose attention they hold.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    shown = sorted(rows, key=lambda row: -row.apart)[:SHOWN]
    heights = [LINE * _lines(row) + AROUND + (1.0 if row.attention is not None else 0.0) for row in shown]
    classes = {track.kind: track.classes for row in shown for track in row.tracks}
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.45 * len(classes) + 0.2), dpi=DPI)
    FigureCanvasAgg(figure)
    ratios = [*heights, 0.45 * len(classes) + 0.2]
    parts = figure.subfigures(len(shown) + 1, 1, squeeze=False, height_ratios=ratios)[:, 0]
    for part, row in zip(parts, shown, strict=False):
        if row.attention is None:
            _timeline(part.subplots(), row)
            continue
        above, below = part.subplots(2, 1, height_ratios=[_lines(row) * LINE, 1.0], sharex=True)
        _timeline(above, row)
        below.imshow(row.attention, aspect="auto", cmap="magma", interpolation="nearest")
        below.set_yticks(range(len(row.tracks)), [track.name for track in row.tracks], fontsize=8)
        below.set_xlabel(f"{watched}: what the first person attends to, mean over its steps", fontsize=8)
    for place, (kind, names) in enumerate(classes.items()):
        marks = [Patch(color=colour, label=name) for colour, name in zip(_colours(len(names)), names, strict=True)]
        height = 1 - (place + 0.5) / len(classes)
        parts[-1].legend(
            handles=marks,
            loc="center",
            bbox_to_anchor=(0.5, height),
            ncols=len(names),
            frameon=False,
            fontsize=8,
            title=kind,
        )
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def _lines(row: Row) -> int:
    return sum(len(track.found) + (track.truth is not None) + 1 for track in row.tracks)


def _timeline(axes: Axes, row: Row) -> None:
    """Draws every track of a video: a line for the truth and one for each model."""
    steps = len(next(iter(row.tracks[0].found.values())))
    named: list[str] = []
    lines: list[np.ndarray] = []
    for track in row.tracks:
        palette = np.array([_rgb(colour) for colour in (*_colours(len(track.classes)), NOBODY)])
        told = {} if track.truth is None else {TRUTH: track.truth}
        for label, values in {**told, **track.found}.items():
            there = values if track.truth is None else np.where(track.truth == UNKNOWN, UNKNOWN, values)
            lines.append(palette[there])
            named.append(f"{track.name}  {label}" if label in (TRUTH, next(iter(track.found))) else label)
        lines.append(np.ones((steps, 3)))
        named.append("")
    axes.imshow(np.stack(lines[:-1]), aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(lines) - 1), named[:-1], fontsize=8)
    axes.set_title(row.name, fontsize=10, loc="left")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colours(count: int) -> list[str]:
    """Returns so many colours that can be told apart."""
    wheel = colormaps["tab20"]
    assert isinstance(wheel, ListedColormap)
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    return ["#" + "".join(f"{round(255 * x):02x}" for x in wheel(order[i % 20])[:3]) for i in range(count)]


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
