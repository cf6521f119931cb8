"""Images that are decoded when they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from kdbench.errors import KDBenchError

#: Top, left, height and width of a crop, pixels.
Box = tuple[int, int, int, int]


class UnreadableImage(KDBenchError):
    """A file that does not decode.

    A loader's worker process passes an error on as its text within a traceback; this one is its last line again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{__name__}.{type(self).__qualname__}: ")[2].rstrip())


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are read at one size, in RGB.

    Attributes:
        paths: Of the images.
        size: Height and width that are delivered.
        central: Share of the shorter side that evaluation keeps; 224/256 is ImageNet's.
    """

    paths: Sequence[Path]
    size: tuple[int, int] = (224, 224)
    central: float = 0.875

    def __len__(self) -> int:
        return len(self.paths)

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
            image = decode(self.paths[row], channels=3)
            box = None if crop is None else crop(place, image.height, image.width)
            images.append(to_size(image, self.size, box, self.central))
        return torch.stack(images) if images else torch.empty(0, 3, *self.size, dtype=torch.uint8)


def decode(path: Path, channels: int) -> Image.Image:
    """Decodes an image file in grey (one channel) or RGB (three).

    Raises:
        UnreadableImage: The file is not a whole image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd metadata
            with Image.open(path) as image:
                return image.convert("L" if channels == 1 else "RGB")
    # Decoders of broken files raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ….
    except Exception as error:
        reason = str(error).replace(str(path), "it").replace("\n", " ")
        raise UnreadableImage(f"{path}: not a readable image ({reason})") from None


def to_size(image: Image.Image, size: tuple[int, int], box: Box | None = None, central: float = 1.0) -> Tensor:
    """Resizes a box of an image, by default the largest central one of the same shape times ``central``.

    Returns:
        ``(C, H, W)`` uint8.
    """
    if box is None:
        scale = central * min(image.height / size[0], image.width / size[1])
        height, width = (max(1, round(scale * side)) for side in size)
        box = ((image.height - height) // 2, (image.width - width) // 2, height, width)
    resized = functional.resized_crop(image, *box, list(size), antialias=True)
    array = np.asarray(resized)
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())
