"""Pictures of detections: images with the boxes of the truth and of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tasks.lettering import font as letters

WIDTH, MARGIN, GAP, HEAD, LEGEND = 1500, 20, 8, 34, 30  # pixels
ROWS = 4
TALLEST = 600
#: Detections below it are not drawn.
SCORE = 0.3
INK, PAPER = "#1b1f24", "#ffffff"
#: By class, in turn: told apart by the colour-blind (Okabe and Ito), light on dark streets.
COLOURS = ("#f0e442", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#0072b2")


@dataclass(frozen=True)
class Drawn:
    """Boxes ``(N, 4)``, classes ``(N,)`` and scores ``(N,)``, or None of the truth."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """One image ``(3, H, W)`` uint8, what is on it (None where that is not known) and what each model says."""

    image: np.ndarray
    truth: Drawn | None
    found: Mapping[str, Drawn]


def render(rows: Sequence[Row], classes: Sequence[str]) -> Image.Image:
    """Draws images one below the other, with a column for the truth and one for each model.

    Boxes of models are drawn from a score of 0.3 on, with their scores.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    shown = rows[:ROWS]
    titles = [*(["truth"] if shown[0].truth is not None else []), *shown[0].found]
    wide = (WIDTH - 2 * MARGIN - (len(titles) - 1) * GAP) // len(titles)
    panels = [[_panel(row.image, drawn, wide) for drawn in _columns(row)] for row in shown]
    heights = [own[0].height for own in panels]
    made = Image.new("RGB", (WIDTH, HEAD + sum(heights) + GAP * len(heights) + LEGEND + MARGIN), PAPER)
    draw = ImageDraw.Draw(made)
    top = HEAD
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (wide + GAP) + wide / 2, HEAD / 2), title, INK, letters(17), anchor="mm")
    for own, tall in zip(panels, heights, strict=True):
        for column, panel in enumerate(own):
            made.paste(panel, (MARGIN + column * (wide + GAP) + (wide - panel.width) // 2, top))
        top += tall + GAP
    left = MARGIN
    for number, name in enumerate(classes):
        extent = 20 + round(letters(14).getlength(name)) + 22
        if left + extent > WIDTH - MARGIN:
            break
        draw.rectangle((left, top + 6, left + 14, top + 20), COLOURS[number % len(COLOURS)], INK)
        draw.text((left + 20, top + 13), name, INK, letters(14), anchor="lm")
        left += extent
    return made


def _columns(row: Row) -> list[Drawn]:
    return [*([] if row.truth is None else [row.truth]), *row.found.values()]


def _panel(image: np.ndarray, drawn: Drawn, wide: int) -> Image.Image:
    scale = min(wide / image.shape[2], TALLEST / image.shape[1])
    size = max(1, round(image.shape[2] * scale)), max(1, round(image.shape[1] * scale))
    panel = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(panel)
    scores = np.ones(len(drawn.boxes)) if drawn.scores is None else drawn.scores
    for place in np.argsort(scores, kind="stable").tolist():
        if scores[place] < SCORE:
            continue
        colour = COLOURS[int(drawn.labels[place]) % len(COLOURS)]
        left, top, right, bottom = (drawn.boxes[place] * scale).tolist()
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
        if drawn.scores is not None:
            draw.text((left + 3, top + 1), f"{scores[place]:.2f}"[1:], colour, letters(11))
    return panel
