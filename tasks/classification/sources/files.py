"""Images that are decoded when they are needed, and what is found out about them before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from kdbench.errors import KDBenchError, printable

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
                return self._plain(_load(path)[0], "L" if channels == 1 else "RGB")
        except Exception as error:
            raise _unreadable(path, error) from None

    def _plain(self, image: Image.Image | np.ndarray, mode: str) -> Image.Image:
        if isinstance(image, np.ndarray):
            low, high = self.range or natural_range(*_extent(image))
            unit = ((image.astype(np.float64) - low) / (high - low)).clip(0, 1)
            image = Image.fromarray(np.rint(255 * unit).astype(np.uint8))
        if image.has_transparency_data:
            if image.mode == "La":
                image = image.convert("LA")
            ground = Image.new("RGBA", image.size, self.background)
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        return image.convert(mode)


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
        mode = InterpolationMode(self.interpolation)
        if box is None and (self.crop is not None or self.side is not None):
            side = self.side or math.floor(min(size) / (self.crop or 1.0))
            resized = functional.center_crop(functional.resize(image, [side], mode, antialias=True), list(size))
        else:
            if box is None:
                scale = central * min(image.height / size[0], image.width / size[1])
                height, width = (max(1, round(scale * length)) for length in size)
                box = ((image.height - height) // 2, (image.width - width) // 2, height, width)
            resized = functional.resized_crop(image, *box, list(size), mode, antialias=True)
        array = np.asarray(resized)
        return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())


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


def examine(path: Path) -> Facts:
    """Decodes an image file and says what it holds.

    Raises:
        UnreadableImage: The file is not a whole image.
    """
    try:
        image, facts = _load(path, fast=True)
        if isinstance(image, Image.Image):
            Image.new(image.mode, (1, 1)).convert("RGB")
    except Exception as error:
        raise _unreadable(path, error) from None
    return facts


def _load(path: Path, fast: bool = False) -> tuple[Image.Image | np.ndarray, Facts]:
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
    facts = Facts(extent, values.ndim == 3 and values.shape[2] == 4, turned, frames)
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
    """Says whether Pillow is about to cut colours of 16 bits down to their high byte."""
    return image.mode in ("RGB", "RGBA") and any(_raw(tile).startswith(f"{image.mode};16") for tile in image.tile)


def _raw(tile: Any) -> str:
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _low_bytes(path: Path) -> np.ndarray:
    """Reads the low bytes of colours of 16 bits: they are the high ones in the other order of bytes."""
    with Image.open(path) as opened:
        image: Any = opened
        tiles = []
        for codec, extents, offset, arguments in image.tile:
            raw = _raw((codec, extents, offset, arguments))
            other = raw[:-1] + ("L" if raw.endswith("B") else "B")
            tiles.append((codec, extents, offset, (other, *arguments[1:]) if isinstance(arguments, tuple) else other))
        image.tile = tiles
        return np.asarray(image)


def _extent(values: np.ndarray) -> tuple[float, float, bool]:
    return float(values.min()), float(values.max()), values.dtype.kind != "f"


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    # Decoders of broken files raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ….
    if isinstance(error, UnidentifiedImageError):
        text = "of no known format"
    else:
        text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return UnreadableImage(f"{printable(path)}: not a readable image ({' '.join(text.split())})")
