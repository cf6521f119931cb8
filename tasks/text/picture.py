"""Pictures of texts: each word coloured by how badly a model foresees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from tasks.lettering import font

WIDTH, MARGIN, SIZE, LINE = 1500, 24, 20, 32
#: Divergence, in nats, of the darkest colour.
MOST = 2.0
TEXT, QUIET, PAPER = "#1a1a1a", "#5a5a5a", "white"


@dataclass(frozen=True)
class Read:
    """A text as models read it.

    Attributes:
        title: What it is called.
        words: Its words.
        apart: By model, ``(L,)`` how badly it foresees each word, in nats.
        known: How many of the words were given; the model wrote the others.
    """

    title: str
    words: Sequence[str]
    apart: Mapping[str, np.ndarray]
    known: int | None = None


def render(texts: Sequence[Read], said: str) -> Image.Image:
    """Draws each text once for every model, its words on a ground that is the darker the worse they were foreseen.

    Args:
        texts: At least one.
        said: What the colours mean.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    lines = sum(_layout(one.words)[1] + 1 for one in texts for _ in one.apart) + len(texts)
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + LINE * (lines + 1)), PAPER)
    draw, top = ImageDraw.Draw(image), MARGIN
    _scale(draw, top, said)
    top += LINE
    for one in texts:
        draw.text((MARGIN, top), one.title, TEXT, font(SIZE))
        top += LINE
        for name, apart in one.apart.items():
            said = f"{name}: mean {float(apart.mean()):.3f} nats" if len(apart) else name
            draw.text((MARGIN, top), said, QUIET, font(SIZE - 4))
            top += LINE - 8
            places, count = _layout(one.words)
            for place, (word, (left, line)) in enumerate(zip(one.words, places, strict=True)):
                where = left, top + LINE * line
                box = (where[0] - 3, where[1] - 1, where[0] + font(SIZE).getlength(word) + 3, where[1] + SIZE + 5)
                draw.rectangle(box, _colour(float(apart[place])))
                if one.known is not None and place >= one.known:  # what the model wrote itself
                    draw.line((box[0], box[3] + 1, box[2], box[3] + 1), TEXT, 1)
                draw.text(where, word, TEXT, font(SIZE))
            top += LINE * count + 8
    return image.crop((0, 0, WIDTH, top + MARGIN))


def _layout(words: Sequence[str]) -> tuple[list[tuple[float, int]], int]:
    """Returns the left edge and the line of each word, and how many lines there are."""
    places, left, line = [], float(MARGIN), 0
    for word in words:
        wide = font(SIZE).getlength(word)
        if left + wide > WIDTH - MARGIN:
            left, line = float(MARGIN), line + 1
        places.append((left, line))
        left += wide + 12
    return places, line + 1


def _colour(apart: float) -> tuple[int, int, int]:
    red, green, blue, _ = colormaps["Oranges"](0.75 * min(max(apart, 0.0) / MOST, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _scale(draw: ImageDraw.ImageDraw, top: int, said: str) -> None:
    """Draws what the colours mean."""
    draw.text((MARGIN, top), said, QUIET, font(SIZE - 4))
    left = MARGIN + font(SIZE - 4).getlength(said) + 24
    for value in (0.0, 0.1, 0.5, 1.0, MOST):
        draw.rectangle((left, top, left + 64, top + SIZE), _colour(value))
        draw.text((left + 8, top + 1), f"{value:g}" + ("+" if value == MOST else ""), TEXT, font(SIZE - 4))
        left += 72
