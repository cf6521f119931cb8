"""Image files of people: decoded upright in 8 bits, and what is found out about one before anything trains."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor, UnidentifiedImageError

from kdbench.errors import KDBenchError, printable
from tasks import pixels
from tasks.pixels import BACKGROUND, Facts, Range


class UnreadableImage(KDBenchError):
    """A file that does not decode.

    A loader's worker process passes an error on as its text within a traceback; this one is its last line again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{__name__}.{type(self).__qualname__}: ")[2].rstrip())


@dataclass(frozen=True)
class Reader:
    """How image files become pixels of 8 bits: upright, without transparency, grey or RGB.

    Attributes:
        background: Colour under transparent pixels, by name or as ``#rrggbb``.
        range: What becomes black and white in images of more than 8 bits; None for the :func:`natural_range` of each.
    """

    background: str = BACKGROUND
    range: Range | None = None

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise KDBenchError(
                f"data.background={self.background}: there is no such colour; expected a name or '#rrggbb'"
            ) from None

    def decode(self, path: Path, channels: int) -> Image.Image:
        """Decodes an image file in grey (one channel) or RGB (three).

        Raises:
            UnreadableImage: The file is not a whole image.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on odd metadata
                return pixels.decode(path, channels, self.background, self.range)
        except Exception as error:
            raise unreadable(path, error) from None


def examine(path: Path) -> Facts:
    """Decodes an image file and says what it holds.

    Raises:
        UnreadableImage: The file is not a whole image.
    """
    try:
        image, facts = pixels.load(path, fast=True)
        if isinstance(image, Image.Image):
            Image.new(image.mode, (1, 1)).convert("RGB")
    except Exception as error:
        raise unreadable(path, error) from None
    return facts


def unreadable(path: Path, error: Exception) -> UnreadableImage:
    """Says in one line what a decoder found wrong with a file."""
    # Decoders of broken files raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ….
    if isinstance(error, UnidentifiedImageError):
        text = "of no known format"
    else:
        text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return UnreadableImage(f"{printable(path)}: not a readable image ({' '.join(text.split())})")
