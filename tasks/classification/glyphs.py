"""Rendered characters in clutter, as they stand in street numbers: small images that are hard, without a download.

The classes are those of EMNIST Balanced (Cohen et al., 2017, arXiv 1702.05373), digits and letters without the lower
cases that look like their capitals; the typefaces are the text faces that matplotlib ships (DejaVu, STIX, Computer
Modern). NumPy and Pillow alone, so that a process that renders starts fast.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from kdbench.base import rng
from kdbench.errors import KDBenchError, nearest

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
#: The five of one width for all characters: what ``test_fonts=unseen`` keeps out of training.
MONOSPACED = (
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "cmtt10",
)
#: File names in matplotlib's ``fonts/ttf``.
FACES: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    *MONOSPACED,
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmti10",
)
#: Em of the characters, as a share of the side of an image.
EM = 0.75
#: Probability of a neighbour on either side, and its distance as a share of the em.
NEIGHBOUR = 0.75
GAP = (0.075, 0.175)
#: Standard deviations at strength 1: angle in rad, shear, log-zoom of each axis and of both, shift in sides.
ROTATION, SHEAR, ZOOM, SHIFT = 0.16, 0.20, 0.12, 0.05
#: Ink over ground, in grey values of 0..1; both together stay there.
CONTRAST = (0.25, 0.7)
#: Shading: cells along a side, and standard deviation at strength 1.
TEXTURES = ((3, 0.10), (7, 0.08))
#: Standard deviations at strength 1: of the width of the blur, in pixels, and of a pixel's noise.
BLUR, NOISE = 0.5, 0.05
#: Drawn so many times larger, then averaged.
OVERSAMPLING = 2


@dataclass(frozen=True)
class Render:
    """Options of ``data.render``.

    Attributes:
        size: Side of an image, pixels.
        strength: Of warp, shading, blur and noise.
        fonts: Typefaces, of :data:`FACES`; None for all.
        colour: RGB, each channel with a ground and a contrast of its own, instead of grey.
        seed: Of the data set.
    """

    size: Annotated[int, Field(ge=8)] = 16
    strength: NonNegativeFloat = 0.5
    fonts: tuple[str, ...] | None = None
    colour: bool = False
    seed: NonNegativeInt = 1

    def __post_init__(self) -> None:
        for name in self.fonts or ():
            if name not in FACES:
                raise KDBenchError(f"data.render.fonts: there is no typeface {name!r}: {nearest(name, FACES)}")
        if self.fonts is not None and not self.fonts:
            raise KDBenchError("data.render.fonts=[]: expected a typeface at least, or null for all")

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 3 if self.colour else 1


@dataclass(frozen=True)
class Glyph:
    """A character of a typeface.

    Attributes:
        ink: What it covers, cut to its box.
        top: First row of the box over the base line, pixels.
    """

    ink: Image.Image
    top: int


def font_file(face: str) -> Path:
    """Returns the file of a typeface."""
    from matplotlib import get_data_path

    return Path(get_data_path(), "fonts", "ttf", f"{face}.ttf")


def made_with(faces: Sequence[str]) -> list[str]:
    """Returns what decides the shapes beside the options: digests of the font files, and FreeType's version."""
    files = [hashlib.sha256(font_file(face).read_bytes()).hexdigest() for face in faces]
    return [*files, str(features.version("freetype2"))]


@cache
def _glyphs(face: str, em: int) -> tuple[Glyph, ...]:
    # The basic layout, because the other one is a library that may be absent.
    font = ImageFont.truetype(font_file(face), em, layout_engine=ImageFont.Layout.BASIC)
    made = []
    for character in CLASSES:
        left, top, right, bottom = (round(edge) for edge in font.getbbox(character, anchor="ls"))
        ink = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=font, anchor="ls")
        made.append(Glyph(ink, top))
    return tuple(made)


def render(options: Render, faces: Sequence[str], split: str, rows: range) -> np.ndarray:
    """Renders images of a split, each from a random stream of its own: (seed, split, row).

    A smaller split is therefore the beginning of a larger one. The classes come in turn, row 0 being of the first.

    Args:
        options: Of the images.
        faces: Typefaces to draw from.
        split: Names the stream.
        rows: Which images.

    Returns:
        ``(N, C, S, S)`` uint8.
    """
    streams = [rng.numpy(options.seed, "glyphs", split, row) for row in rows]
    ink = np.stack([_line(options, faces, row, stream) for row, stream in zip(rows, streams, strict=True)])
    grey = np.stack([_clutter(options, *drawn) for drawn in zip(ink, streams, strict=True)])
    return np.rint(255 * grey.clip(0, 1)).astype(np.uint8)


def _line(options: Render, faces: Sequence[str], row: int, stream: np.random.Generator) -> np.ndarray:
    """Draws a character of the class of ``row`` between its neighbours and warps the line: ``(S, S)`` ink in 0..1."""
    side = OVERSAMPLING * options.size
    em = round(1.25 * EM * side)
    glyphs = _glyphs(faces[int(stream.integers(len(faces)))], em)
    there = stream.random(2) < NEIGHBOUR
    gaps = np.rint(em * stream.uniform(*GAP, size=2)).astype(int)
    left, right = (glyphs[i] for i in stream.integers(len(CLASSES), size=2))
    own = glyphs[row % len(CLASSES)]
    canvas = Image.new("L", (4 * em, 4 * em))
    start, base = 2 * em - own.ink.width // 2, 2 * em - own.top - own.ink.height // 2
    canvas.paste(own.ink, (start, base + own.top))
    if there[0]:
        canvas.paste(left.ink, (start - int(gaps[0]) - left.ink.width, base + left.top))
    if there[1]:
        canvas.paste(right.ink, (start + own.ink.width + int(gaps[1]), base + right.top))
    angle, shear, across, down, both, *shift = options.strength * stream.standard_normal(7)
    # From a place in the image to one on the canvas: unshift, unturn, unshear, unzoom.
    sine, cosine = math.sin(ROTATION * angle), math.cos(ROTATION * angle)
    turned = np.array([[1, -SHEAR * shear], [0, 1]]) @ np.array([[cosine, sine], [-sine, cosine]])
    zooms = np.exp(-ZOOM * (np.array([across, down]) + both)) * em / (EM * side)
    warp = zooms[:, None] * turned
    offset = 2 * em - warp @ (side * (0.5 + SHIFT * np.array(shift)))
    affine = np.column_stack([warp, offset]).ravel().tolist()
    warped = canvas.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(warped.reduce(OVERSAMPLING), dtype=np.float64) / 255


def _clutter(options: Render, ink: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Puts ink on a shaded ground, blurs it and adds noise: ``(C, S, S)`` grey values."""
    contrast = stream.uniform(*CONTRAST, size=(options.channels, 1, 1))
    grey = stream.random((options.channels, 1, 1)) * (1 - contrast) + contrast * ink
    for cells, deviation in TEXTURES:
        across = _upsampling(cells, options.size)
        grey = grey + options.strength * deviation * (across @ stream.standard_normal((cells, cells)) @ across.T)
    blur = _blurring(options.size, abs(options.strength * BLUR * stream.standard_normal()))
    grey = blur @ grey @ blur.T
    return grey + options.strength * NOISE * stream.standard_normal(grey.shape)


@cache
def _upsampling(cells: int, size: int) -> np.ndarray:
    """Returns the weights ``(size, cells)`` of Pillow's bicubic interpolation."""
    unit = Image.fromarray(np.eye(cells, dtype=np.float32))
    return np.asarray(unit.resize((cells, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _blurring(size: int, width: float) -> np.ndarray:
    """Returns the weights ``(size, size)`` of a Gaussian, cut off and renormalised at the border."""
    distances = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distances / max(width, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdims=True)
