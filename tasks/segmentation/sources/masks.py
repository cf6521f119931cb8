"""Masks: one number a pixel, out of PNG files of 1, 8 or 16 bits, grey or with a palette, never out of pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from kdbench.errors import KDBenchError, printable
from tasks.images import UnreadableImage, unreadable
from tasks.pixels import load
from tasks.segmentation.sources.base import IGNORED, Labels

#: Formats that keep every value as it was.
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "PPM")
#: Of 24 bits, in RGB.
_BASE = np.array([65536, 256, 1])
UNKNOWN = 254


def read_numbers(path: Path, pictures: bool = False) -> np.ndarray:
    """Returns the numbers in a mask ``(H, W)`` int32; the indices of one with a palette.

    Args:
        path: Of the file.
        pictures: Whether masks are RGB pictures: a number is then ``65536 R + 256 G + B``.

    Raises:
        KDBenchError: It is not a whole image, holds colours, or is in a format that blurs values.
    """
    try:
        with Image.open(path) as image:
            image.load()
            kind, mode = image.format, image.mode
            values = np.asarray(image.convert("RGB") if pictures else image)
    except Exception as error:
        raise unreadable(path, error) from None
    if kind not in LOSSLESS:
        raise UnreadableImage(f"{printable(path)}: a mask in {kind}, which blurs its numbers; expected PNG")
    if pictures:
        return (values.astype(np.int32) @ _BASE).astype(np.int32)
    if values.ndim != 2 or mode == "F":
        kinds = {"F": "fractions", "LA": "grey with transparency"}
        found = kinds.get(mode, f"an {mode} picture")
        raise UnreadableImage(
            f"{printable(path)}: {found}; expected a mask of one class number a pixel. For colours: data=maskfolder "
            "with the colour of each class behind its name in classes.txt, e.g. 'road 128 64 128'"
        )
    return values.astype(np.int32)


@dataclass(frozen=True)
class MaskReader:
    """Turns masks into classes.

    Attributes:
        labels: What their numbers mean.
    """

    labels: Labels

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers that may occur, ascending, and the class of each."""
        labels = self.labels
        known = dict(labels.codes)
        if labels.colours:
            whole = {int(np.array(colour) @ _BASE): number for colour, number in labels.colours.items()}
            known = {packed: labels.codes[number] for packed, number in whole.items()}
        numbers = np.array(sorted(known), dtype=np.int64)
        return numbers, np.array([known[n] for n in numbers.tolist()], dtype=np.uint8)

    def numbers(self, path: Path) -> np.ndarray:
        """Returns the numbers in a mask ``(H, W)``."""
        return read_numbers(path, pictures=bool(self.labels.colours))

    def classes(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the class of each pixel ``(H, W)`` uint8; :data:`UNKNOWN` where a number means nothing."""
        known, classes = self._table
        place = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        return np.where(known[place] == numbers, classes[place], np.uint8(UNKNOWN))

    def read(self, path: Path) -> np.ndarray:
        """Reads the classes of a mask ``(H, W)`` uint8, :data:`IGNORED` where there is none."""
        found = self.classes(self.numbers(path))
        found[found == UNKNOWN] = IGNORED  # examined before: only where a file was changed since
        return found


@dataclass(frozen=True)
class Facts:
    """What is found out about a sample before anything trains.

    Attributes:
        digest: Of the content of both files.
        size: Height and width, pixels.
        numbers: How many pixels of the mask hold each number.
        extent: Lowest and highest value of the image and whether they are integers; None where they are bytes.
    """

    digest: str
    size: tuple[int, int]
    numbers: dict[int, int]
    extent: tuple[float, float, bool] | None = None


def examine(image: Path, mask: Path, pictures: bool) -> Facts:
    """Reads an image and its mask.

    Raises:
        KDBenchError: One is not readable, or they are not of one size.
    """
    numbers = read_numbers(mask, pictures)
    try:
        picture, facts = load(image)
    except Exception as error:
        raise unreadable(image, error) from None
    tall, wide = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    if numbers.shape != (tall, wide):
        raise KDBenchError(
            f"{printable(mask)}: {numbers.shape[1]} x {numbers.shape[0]} pixels, its image {printable(image.name)} has "
            f"{wide} x {tall}; expected equal sizes"
        )
    content = hashlib.sha256()
    for path in (image, mask):
        with path.open("rb") as stream:
            content.update(hashlib.file_digest(stream, "sha256").digest())
    values, counts = np.unique(numbers, return_counts=True)
    held = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return Facts(content.hexdigest()[:32], (tall, wide), held, facts.extent)
