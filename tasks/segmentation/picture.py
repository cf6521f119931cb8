"""Pictures of class maps: images, truth, what each model says, and where the last two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tasks.lettering import font as letters
from tasks.segmentation.sources.base import IGNORED

WIDTH, MARGIN, GAP, HEAD, LEGEND = 1500, 20, 8, 34, 26  # pixels
#: Images that are shown, and test batches that they are chosen from.
ROWS, BATCHES = 5, 8
TALLEST = 700
INK, PAPER = "#1b1f24", "#ffffff"
RIGHT, WRONG, BOTH = (0, 114, 178), (213, 94, 0), (180, 180, 180)  # told apart by the colour-blind
#: By name, for the classes of streets: Cityscapes' own colours.
COLOURS = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "pavement": (244, 35, 232), "building": (70, 70, 70),
    "wall": (102, 102, 156), "fence": (190, 153, 153), "pole": (153, 153, 153), "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0), "sign": (220, 220, 0), "vegetation": (107, 142, 35), "tree": (107, 142, 35),
    "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60), "pedestrian": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32), "bicyclist": (119, 11, 32),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One image of a picture.

    Attributes:
        image: ``(3, H, W)`` uint8.
        truth: ``(H, W)`` classes, or None where they are not known.
        found: ``(H, W)`` classes by model.
    """

    image: np.ndarray
    truth: np.ndarray | None
    found: Mapping[str, np.ndarray]

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What the last two models say, where there are two and the truth is known."""
        if self.truth is None or len(self.found) < 2:
            return None
        *_, other, last = self.found.values()
        return other, last

    @property
    def apart(self) -> float:
        """Share of the pixels of a class on which the last two models differ."""
        if self.pair is None or self.truth is None:
            return 0.0
        return float(((self.pair[0] != self.pair[1]) & (self.truth != IGNORED)).mean())


def render(rows: Sequence[Row], classes: Sequence[str], in_order: bool = False) -> Image.Image:
    """Draws the images on which the last two models differ most, one below the other.

    The last panel shows where: blue where only the last model is right, orange where only the one before it is, grey
    where both are wrong in two ways.

    Args:
        rows: At least one, of the same models.
        classes: Names of the classes.
        in_order: Whether they are shown as they come instead.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    shown = [*rows] if in_order else sorted(rows, key=lambda row: -row.apart)[:ROWS]
    palette = colours(classes)
    first = shown[0]
    titles = ["image", *(["truth"] if first.truth is not None else []), *first.found]
    if first.pair is not None:
        titles.append(f"{list(first.found)[-1]} against {list(first.found)[-2]}")
    columns = len(titles)
    wide = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    panels = [[_fitted(panel, wide) for panel in _panels(row, palette)] for row in shown]
    heights = [row[0].height for row in panels]
    lines = _legend_lines(classes, shown)
    keys = LEGEND if first.pair is not None else 0
    height = HEAD + sum(heights) + GAP * len(heights) + LEGEND * len(lines) + keys + MARGIN
    made = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(made)
    top = HEAD
    for column, title in enumerate(titles):
        middle = MARGIN + column * (wide + GAP) + wide / 2
        draw.text((middle, HEAD / 2), title, INK, letters(17), anchor="mm")
    for own, tall in zip(panels, heights, strict=True):
        for column, panel in enumerate(own):
            left = MARGIN + column * (wide + GAP) + (wide - panel.width) // 2
            made.paste(panel, (left, top))
        top += tall + GAP
    for line in lines:
        _keys(draw, top, [(tuple(palette[number].tolist()), classes[number]) for number in line])
        top += LEGEND
    if first.pair is not None:
        *_, other, last = first.found
        _keys(
            draw,
            top,
            [(RIGHT, f"only {last} is right"), (WRONG, f"only {other} is right"), (BOTH, "they differ, both wrong")],
        )
    return made


def _keys(draw: ImageDraw.ImageDraw, top: int, entries: Sequence[tuple[tuple[int, ...], str]]) -> None:
    """Writes a line of colours and what they mean."""
    left = MARGIN
    for colour, text in entries:
        draw.rectangle((left, top + 6, left + 14, top + 20), colour)
        draw.text((left + 20, top + 13), text, INK, letters(14), anchor="lm")
        left += _extent(text)


def _extent(text: str) -> int:
    return 20 + round(letters(14).getlength(text)) + 22


def colours(classes: Sequence[str]) -> np.ndarray:
    """Returns a colour for each class, ``(256, 3)`` uint8; black for pixels without one.

    Classes of streets have those of Cityscapes, others those of PASCAL VOC, whose bits are spread over the channels.
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    for number, name in enumerate(classes):
        bits = [[(number + 1) >> (3 * place + channel) & 1 for place in range(3)] for channel in range(3)]
        spread = [sum(bit << (7 - place) for place, bit in enumerate(own)) for own in bits]
        table[number] = COLOURS.get(name, tuple(spread))
    return table


def _panels(row: Row, palette: np.ndarray) -> list[Image.Image]:
    truth = [] if row.truth is None else [row.truth]
    panels = [Image.fromarray(row.image.transpose(1, 2, 0))]
    panels += [Image.fromarray(palette[labels]) for labels in (*truth, *row.found.values())]
    if row.pair is not None and row.truth is not None:
        other, last = row.pair
        differ = (other != last) & (row.truth != IGNORED)
        shown = np.full((*row.truth.shape, 3), 245, dtype=np.uint8)
        shown[differ] = BOTH
        shown[differ & (last == row.truth)] = RIGHT
        shown[differ & (other == row.truth)] = WRONG
        panels.append(Image.fromarray(shown))
    return panels


def _fitted(panel: Image.Image, wide: int) -> Image.Image:
    scale = min(wide / panel.width, TALLEST / panel.height)
    size = max(1, round(panel.width * scale)), max(1, round(panel.height * scale))
    return panel.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _legend_lines(classes: Sequence[str], rows: Sequence[Row]) -> list[list[int]]:
    """Returns the classes that occur, by line."""
    maps = [labels for row in rows for labels in (row.truth, *row.found.values()) if labels is not None]
    seen = sorted({int(v) for labels in maps for v in np.unique(labels)} - {IGNORED})
    lines: list[list[int]] = [[]]
    left = 0
    for number in seen:
        extent = _extent(classes[number])
        if left + extent > WIDTH - 2 * MARGIN and lines[-1]:
            lines.append([])
            left = 0
        lines[-1].append(number)
        left += extent
    return lines
