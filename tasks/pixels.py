"""Pixels of 8 bits out of image files, at one size. NumPy and Pillow alone: exported models bring this along."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Top, left, height and width of a crop, pixels.
Box = tuple[int, int, int, int]
#: Values that become black and white.
Range = tuple[float, float]

#: On which neither black nor white vanishes.
BACKGROUND = "gray"
#: Tag of EXIF that says how a stored picture has to be turned, and what undoes each of its values.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: Path, channels: int, background: str = BACKGROUND, values: Range | None = None) -> Image.Image:
    """Decodes an image file in grey (one channel) or RGB (three): upright, on a background, of 8 bits.

    Args:
        path: Of the file.
        channels: 1 or 3.
        background: Colour under transparent pixels, by name or as ``#rrggbb``.
        values: What becomes black and white in images of more than 8 bits; None for the :func:`natural_range`.
    """
    image = load(path)[0]
    if isinstance(image, np.ndarray):
        low, high = values or natural_range(*_extent(image))
        unit = ((image.astype(np.float64) - low) / (high - low)).clip(0, 1)
        image = Image.fromarray(np.rint(255 * unit).astype(np.uint8))
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        ground = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def to_size(
    image: Image.Image,
    size: tuple[int, int],
    box: Box | None = None,
    central: float = 1.0,
    crop: float | None = None,
    side: int | None = None,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Resizes a box of an image, or the central one, as torchvision does with images of Pillow.

    Args:
        image: Of any size.
        size: Height and width that are returned.
        box: What is resized; None for the centre.
        central: Share of the largest central box of the same shape that is resized.
        crop: In place of that, what share of the shorter side is cut out after resizing.
        side: Or to what the shorter side is resized.
        interpolation: Name of Pillow's filter.

    Returns:
        ``(C, H, W)`` uint8.
    """
    mode = Image.Resampling[interpolation.upper()]
    height, width = size
    if box is None and (crop is not None or side is not None):
        short = side or math.floor(min(size) / (crop or 1.0))
        longer = int(short * max(image.size) / min(image.size))
        image = _resized(image, (short, longer) if image.width <= image.height else (longer, short), mode)
        box = (round((image.height - height) / 2), round((image.width - width) / 2), height, width)
    elif box is None:
        scale = central * min(image.height / height, image.width / width)
        tall, wide = (max(1, round(scale * length)) for length in size)
        box = ((image.height - tall) // 2, (image.width - wide) // 2, tall, wide)
    top, left, tall, wide = box
    array = np.asarray(_resized(image.crop((left, top, left + wide, top + tall)), (width, height), mode))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _resized(image: Image.Image, size: tuple[int, int], mode: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, mode)


def natural_range(low: float, high: float, whole: bool) -> Range:
    """Returns what is black and white among values from ``low`` to ``high``: the range of their type.

    That is 0 to the greatest number of as many bits as they need, 8 at least, for integers; 0 to 1 for fractions that
    lie there; else from the lowest to the highest.
    """
    if whole and low >= 0:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


@dataclass(frozen=True)
class Facts:
    """What is found out about an image file before anything trains.

    Attributes:
        extent: Lowest and highest value and whether they are integers; None where there are no more than 8 bits.
        alpha: Whether it has transparent pixels.
        turned: Whether it is stored on its side, upside down or mirrored.
        frames: Whether it holds further pictures, which nobody reads.
    """

    extent: tuple[float, float, bool] | None = None
    alpha: bool = False
    turned: bool = False
    frames: bool = False


def load(path: Path, fast: bool = False) -> tuple[Image.Image | np.ndarray, Facts]:
    """Returns an upright picture, or its values ``(H, W[, C])`` where they have more than 8 bits.

    Args:
        path: Of the file.
        fast: Lets a JPEG be decoded at an eighth of its size, which takes a third of the time.
    """
    with Image.open(path) as image:
        coarse = _coarse(image)
        # What a phone adds to a photograph (a gain map, a preview) is no further picture.
        frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
        if fast:
            image.draft("L", (1, 1))
        image.load()
        orientation = _orientation(image)
        values: np.ndarray | None = None
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(image)
        elif coarse:
            values = 256 * np.asarray(image).astype(np.uint16) + _low_bytes(path)
        turned = orientation in UPRIGHT
        if values is None:
            upright = image.transpose(UPRIGHT[orientation]) if turned else image
            return upright, Facts(None, _transparent(image), turned, frames)
    extent = _extent(values)
    if not math.isfinite(extent[0]) or not math.isfinite(extent[1]):
        raise ValueError("it holds values that are not finite")
    facts = Facts(extent, values.ndim == 3 and values.shape[2] in (2, 4), turned, frames)
    return _turn(values, orientation) if turned else values, facts


def _transparent(image: Image.Image) -> bool:
    if "A" in image.getbands():
        lowest: Any = image.getchannel("A").getextrema()
        return bool(lowest[0] < 255)
    return image.has_transparency_data


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken metadata of a whole picture: nearly anything
        return 1


def _turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turns values ``(H, W[, C])`` as :data:`UPRIGHT` does images."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def _coarse(image: Any) -> bool:
    """Says whether Pillow is about to cut colours of 16 bits, or grey with transparency, down to their high byte."""
    kinds = (f"{image.mode};16", "LA;16")
    return image.mode in ("RGB", "RGBA", "LA") and any(_raw(tile).startswith(kinds) for tile in image.tile)


def _raw(tile: Any) -> str:
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _low_bytes(path: Path) -> np.ndarray:
    """Reads the low bytes of colours of 16 bits: they are the high ones in the other order of bytes.

    Of grey with transparency Pillow knows one order alone: there the high byte stands for the low one.
    """
    with Image.open(path) as opened:
        image: Any = opened
        tiles = []
        for codec, extents, offset, arguments in image.tile:
            raw = _raw((codec, extents, offset, arguments))
            other = raw if raw.startswith("LA") else raw[:-1] + ("L" if raw.endswith("B") else "B")
            tiles.append((codec, extents, offset, (other, *arguments[1:]) if isinstance(arguments, tuple) else other))
        image.tile = tiles
        return np.asarray(image)


def _extent(values: np.ndarray) -> tuple[float, float, bool]:
    return float(values.min()), float(values.max()), values.dtype.kind != "f"
