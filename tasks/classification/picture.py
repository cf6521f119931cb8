"""Pictures of predictions: the images on which models disagree, with what each takes them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tasks.lettering import font as letters

Found = tuple[np.ndarray, np.ndarray]
#: An image ``(C, H, W)``, its true class, and class and probability by model.
Card = tuple[np.ndarray, int, Mapping[str, tuple[int, float]]]

WIDTH, MARGIN, GAP = 1500, 28, 12  # pixels
COLUMNS, CARDS = 4, 24
THUMB, PAD, LINE = 104, 12, 25
TITLE = 62
NAME, PERCENT = 60, 44
INK, FAINT, CARD, EDGE = "#1b1f24", "#6b7480", "#ffffff", "#dfe3e8"
PAPER = "#f6f7f9"
RIGHT, WRONG = "#0072B2", "#D55E00"  # told apart by the colour-blind


def render(
    images: np.ndarray, truth: np.ndarray, predictions: Mapping[str, Found], classes: Sequence[str]
) -> Image.Image:
    """Draws a card for each image on which the models disagree, in the order of the batch, as many as fit.

    Where they agree on all, or there is one model alone, the images that a model takes for another class come first.

    Args:
        images: ``(B, C, H, W)`` uint8 pixels, C = 1 or 3; signals of height one are drawn as curves.
        truth: ``(B,)`` true classes; -1 where unknown.
        predictions: Class and probability ``(B,)`` each, by model; at least one.
        classes: Names of the classes.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    chosen, title = _choose(truth, predictions)
    cards = [(images[i], int(truth[i]), _of(predictions, i)) for i in chosen]
    return _page(title, cards, COLUMNS, classes)


def columns(
    views: Mapping[str, tuple[np.ndarray, np.ndarray, Mapping[str, Found]]], classes: Sequence[str]
) -> Image.Image:
    """Draws a card for each image in each of several views, those of one image side by side.

    Args:
        views: By name, ``(B, C, H, W)`` uint8 pixels, ``(B,)`` true classes, -1 where unknown, and class and
            probability ``(B,)`` each, by model.
        classes: Names of the classes.

    Returns:
        An RGB image, 1500 pixels wide.
    """
    across = max(1, COLUMNS // len(views)) * len(views)
    shown = min(CARDS // len(views), *(len(truth) for _, truth, _ in views.values()))
    cards = [(images[i], int(truth[i]), _of(said, i)) for i in range(shown) for images, truth, said in views.values()]
    return _page(f"{' and '.join(views)}, side by side", cards, across, classes)


def _of(predictions: Mapping[str, Found], index: int) -> dict[str, tuple[int, float]]:
    return {name: (int(found[index]), float(sure[index])) for name, (found, sure) in predictions.items()}


def _page(title: str, cards: Sequence[Card], across: int, classes: Sequence[str]) -> Image.Image:
    """Draws cards row by row below a title."""
    tall = max(THUMB, LINE * (1 + len(cards[0][2]))) + 2 * PAD
    rows = -(-len(cards) // across)
    height = TITLE + rows * (tall + GAP) - GAP + MARGIN
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, TITLE / 2), title, INK, letters(21), anchor="lm")
    _legend(draw)
    wide = (WIDTH - 2 * MARGIN - (across - 1) * GAP) // across
    for place, (image, label, lines) in enumerate(cards):
        left = MARGIN + place % across * (wide + GAP)
        top = TITLE + place // across * (tall + GAP)
        draw.rounded_rectangle((left, top, left + wide, top + tall), 8, CARD, EDGE)
        picture.paste(_thumb(image), (left + PAD, top + (tall - THUMB) // 2))
        text = (left + PAD + THUMB + PAD, top + PAD, wide - THUMB - 3 * PAD)
        _write(draw, text, label, lines, classes)
    return picture


def card(image: np.ndarray, found: Sequence[tuple[str, float]], title: str) -> Image.Image:
    """Draws an image beside its most probable classes, a bar for each.

    Args:
        image: ``(C, H, W)`` uint8 pixels.
        found: Names of classes and their probabilities, the most probable first.
        title: Line above.
    """
    side, wide, line = 2 * THUMB, 480, 34
    height = LINE + max(side, line * len(found)) + 3 * PAD
    picture = Image.new("RGB", (side + wide + 3 * PAD, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((PAD, PAD + LINE / 2), _fit(title, picture.width - 2 * PAD, letters(16)), FAINT, letters(16), anchor="lm")
    top, left = 2 * PAD + LINE, 2 * PAD + side
    picture.paste(_thumb(image, side), (PAD, top))
    for index, (name, probability) in enumerate(found):
        y = top + line * index
        draw.rectangle((left, y + line - 9, left + wide, y + line - 5), EDGE)
        draw.rectangle((left, y + line - 9, left + wide * probability, y + line - 5), RIGHT)
        draw.text((left, y + line / 2 - 5), _fit(name, wide - 80, letters(16)), INK, letters(16), anchor="lm")
        draw.text((left + wide, y + line / 2 - 5), f"{100 * probability:.1f} %", INK, letters(16), anchor="rm")
    return picture


def _choose(truth: np.ndarray, predictions: Mapping[str, Found]) -> tuple[np.ndarray, str]:
    """Returns the images to show and the line above them."""
    found = np.stack([labels for labels, _ in predictions.values()])
    differ = (found != found[0]).any(0)
    count, size = int(differ.sum()), len(truth)
    if count:
        shown = min(count, CARDS)
        *others, last = predictions
        some = f"; the first {shown}" if shown < count else ""
        title = f"{', '.join(others)} and {last} disagree on {count} of {size} test images{some}"
        return np.flatnonzero(differ)[:shown], title
    wrong = (found[0] != truth) & (truth >= 0)
    order = np.argsort(~wrong, kind="stable")[:CARDS]
    who = f"{next(iter(predictions))} is" if len(predictions) == 1 else f"{', '.join(predictions)} agree and are"
    return order, f"{who} wrong on {int(wrong.sum())} of {size} test images"


def _thumb(image: np.ndarray, side: int = THUMB) -> Image.Image:
    """Scales an image to a square of ``side`` pixels, small ones without smoothing."""
    channels, height, width = image.shape
    if height == 1:
        return _curve(image, side)
    made = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).convert("RGB")
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    made = made.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(made, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _curve(signal: np.ndarray, side: int) -> Image.Image:
    """Draws a signal ``(C, 1, W)``, a line a channel, at four times the size for smooth lines."""
    big = 4 * side
    made = Image.new("RGB", (big, big), PAPER)
    draw = ImageDraw.Draw(made)
    x = np.linspace(0.04, 0.96, signal.shape[2]) * big
    for channel in signal[:, 0].astype(float):
        y = (0.94 - 0.88 * channel / 255) * big
        draw.line([*zip(x.tolist(), y.tolist(), strict=True)], INK, 10, joint="curve")
    return made.resize((side, side), Image.Resampling.LANCZOS)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int, int],
    truth: int,
    lines: Mapping[str, tuple[int, float]],
    classes: Sequence[str],
) -> None:
    """Writes the true class and below it a line a model: its class, in the colour of right or wrong, and how sure."""
    left, top, wide = place
    middle = top + LINE / 2
    draw.text((left, middle), "true", FAINT, letters(14), anchor="lm")
    name = "unknown" if truth < 0 else classes[truth]
    room, right = wide - NAME - PERCENT, left + wide - PERCENT
    draw.text((right, middle), _fit(name, room, letters(16)), INK, letters(16), anchor="rm")
    for index, (model, (label, sure)) in enumerate(lines.items(), 1):
        middle = top + LINE * index + LINE / 2
        color = FAINT if truth < 0 else RIGHT if label == truth else WRONG
        draw.text((left, middle), _fit(model, NAME, letters(14)), FAINT, letters(14), anchor="lm")
        percent = f"{100 * sure:.0f} %"
        draw.text((left + wide, middle), percent, FAINT, letters(14), anchor="rm")
        draw.text((right, middle), _fit(classes[label], room, letters(16)), color, letters(16), anchor="rm")


def _legend(draw: ImageDraw.ImageDraw) -> None:
    right = WIDTH - MARGIN
    for text, color in (("probability", FAINT), ("wrong", WRONG), ("right", RIGHT)):
        draw.text((right, TITLE / 2), text, color, letters(16), anchor="rm")
        right -= int(letters(16).getlength(text)) + 18


def _fit(text: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """Cuts a text that is too long."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"
