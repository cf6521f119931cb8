"""Images that are decoded when they are needed, and what is found out about them before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor

from kdbench.errors import KDBenchError, printable
from tasks.classification.sources import pixels
from tasks.classification.sources.pixels import BACKGROUND, Box, Facts, Range


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
            raise _unreadable(path, error) from None


@dataclass(frozen=True)
class Resize:
    """How an image comes to the size of the data set: the box of a crop is resized, in evaluation a central one.

    Attributes:
        crop: Share of the shorter side that evaluation keeps; 224/256 is ImageNet's. None for the customary one.
        side: Length of the shorter side, pixels, to which evaluation resizes before it cuts the centre out; the other
            way to say the share.
        interpolation: By name.
    """

    crop: float | None = None
    side: int | None = None
    interpolation: str = "bilinear"

    def __call__(
        self, image: Image.Image, size: tuple[int, int], box: Box | None = None, central: float = 1.0
    ) -> Tensor:
        """Resizes a box of an image, or the central one.

        With ``crop`` or ``side`` the centre is cut out after resizing, pixel by pixel as timm and torchvision do it;
        without, the largest central box of the same shape times ``central`` is resized.

        Returns:
            ``(C, H, W)`` uint8.
        """
        array = pixels.to_size(image, size, box, central, self.crop, self.side, self.interpolation)
        return torch.from_numpy(array.copy())


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are read at one size, in RGB.

    Attributes:
        paths: Of the images.
        size: Height and width that are delivered.
        central: Share of the shorter side that evaluation keeps where ``resize`` does not say; 224/256 is ImageNet's.
        reader: Makes pixels of a file.
        resize: Brings them to the size.
    """

    paths: Sequence[Path]
    size: tuple[int, int] = (224, 224)
    central: float = 0.875
    reader: Reader = field(default_factory=Reader)
    resize: Resize = field(default_factory=Resize)

    def __len__(self) -> int:
        return len(self.paths)

    def one(self, path: Path, channels: int) -> Tensor:
        """Decodes an image that need not be among these, ``(C, H, W)`` uint8, as it is read in evaluation."""
        return self.resize(self.reader.decode(path, channels), self.size, central=self.central)

    def read(self, rows: Sequence[int], crop: Callable[[int, int, int], Box] | None = None) -> Tensor:
        """Decodes images.

        Args:
            rows: Which.
            crop: Chooses the box of one from its place in ``rows``, its height and its width; the centre by default.

        Returns:
            ``(B, 3, H, W)`` uint8.

        Raises:
            UnreadableImage: A file does not decode.
        """
        images = []
        for place, row in enumerate(rows):
            image = self.reader.decode(self.paths[row], channels=3)
            box = None if crop is None else crop(place, image.height, image.width)
            images.append(self.resize(image, self.size, box, self.central))
        return torch.stack(images) if images else torch.empty(0, 3, *self.size, dtype=torch.uint8)


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
        raise _unreadable(path, error) from None
    return facts


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    # Decoders of broken files raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ….
    if isinstance(error, UnidentifiedImageError):
        text = "of no known format"
    else:
        text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return UnreadableImage(f"{printable(path)}: not a readable image ({' '.join(text.split())})")
