"""Images that are decoded when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tasks import pixels
from tasks.images import Reader
from tasks.pixels import Box


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
