"""Pictures of classified texts: what models take each class for, and what they say of single texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from tasks.lettering import font

WIDTH, MARGIN, SIZE, LINE = 1500, 24, 20, 30
TEXT, QUIET, PAPER, RIGHT, WRONG = "#1a1a1a", "#5a5a5a", "white", "#1b6e3a", "#a3261b"


@dataclass(frozen=True)
class Judged:
    """A text and what models take it for.

    Attributes:
        text: Its words.
        told: By model, the most probable class and its probability.
        true: Its class, or None where it is not known.
        share: The true probability of that, or None.
    """

    text: str
    told: Mapping[str, tuple[str, float]]
    true: str | None = None
    share: float | None = None


def render(
    said: Mapping[str, np.ndarray], true: np.ndarray, classes: Sequence[str], texts: Sequence[Judged]
) -> Image.Image:
    """Draws a table of true and said classes for each model, and below what the models say of some texts.

    Args:
        said: By model, ``(N,)`` the classes that it tells; none where there is no table.
        true: ``(N,)`` classes of the texts.
        classes: Their names.
        texts: Single ones.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    parts = ([_tables(said, true, classes)] if said else []) + ([_lines(texts)] if texts else [])
    page = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _tables(said: Mapping[str, np.ndarray], true: np.ndarray, classes: Sequence[str]) -> Image.Image:
    figure = Figure(figsize=(WIDTH / 100, 1 + WIDTH / 100 / max(len(said), 2)), dpi=100)
    FigureCanvasAgg(figure)
    count = len(classes)
    for axes, (name, found) in zip(figure.subplots(1, len(said), squeeze=False)[0], said.items(), strict=True):
        table = np.bincount(true * count + found, minlength=count * count).reshape(count, count)
        axes.imshow(table / np.maximum(table.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        right = 100 * float((found == true).mean()) if len(true) else 0.0
        axes.set_title(f"{name}: {right:.1f} % right", fontsize=11)
        axes.set_xticks(range(count), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(count), classes if axes is figure.axes[0] else [""] * count, fontsize=7)
        axes.set_xlabel("said", fontsize=9)
    figure.axes[0].set_ylabel("true", fontsize=9)
    figure.tight_layout()
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def _lines(texts: Sequence[Judged]) -> Image.Image:
    tall = 2 * MARGIN + sum(LINE * (1 + len(one.told)) + 8 for one in texts)
    image = Image.new("RGB", (WIDTH, tall), PAPER)
    draw, top = ImageDraw.Draw(image), MARGIN
    for one in texts:
        share = "" if one.share is None else f", truly {100 * one.share:.0f} %"
        told = "" if one.true is None else f"   ({one.true}{share})"
        draw.text((MARGIN, top), _fitted(one.text, told) + told, TEXT, font(SIZE))
        top += LINE
        for name, (found, how) in one.told.items():
            colour = QUIET if one.true is None else RIGHT if found == one.true else WRONG
            draw.text((2 * MARGIN, top), f"{name}: {found}, {100 * how:.0f} %", colour, font(SIZE - 3))
            top += LINE
        top += 8
    return image


def _fitted(text: str, behind: str) -> str:
    """Shortens a text so that it stands on one line with what comes behind it."""
    room = WIDTH - 2 * MARGIN - font(SIZE).getlength(behind)
    if font(SIZE).getlength(text) <= room:
        return text
    while text and font(SIZE).getlength(text + " …") > room:
        text = text[:-1]
    return text + " …"
