"""How an image file becomes what a model reads: with the weights, all that using a model takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.task import DatasetInfo
from tasks.images import Reader
from tasks.pixels import BACKGROUND

#: ImageNet's, per channel, of images in 0..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Size and normalisation of the images that a model learned from, and the names of their classes.

    Attributes:
        name: Of the data set.
        classes: Class names, in the order of the logits.
        mean: Per channel, of images in 0..1.
        std: Likewise.
        size: Height and width to which images are resized; None as they are.
        typical: Height and width of a made-up image where ``size`` is None.
        reader: How image files are decoded.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    size: tuple[int, int] | None = None
    typical: tuple[int, int] = (96, 192)
    reader: Reader = Reader(BACKGROUND)

    @classmethod
    def of(cls, info: DatasetInfo) -> Preprocess:
        """Returns what a record says."""
        told: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in info.inputs.items()}
        reader = Reader(background=told["background"], range=told["range"])
        return cls(info.name, tuple(info.classes), told["mean"], told["std"], told["size"], told["typical"], reader)

    def as_inputs(self) -> dict[str, Any]:
        """Returns what a record says beside the names, as JSON."""
        found = {"size": self.size, "typical": self.typical, "mean": self.mean, "std": self.std, **asdict(self.reader)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def decode(self, path: Path) -> Tensor:
        """Decodes an image file at the size of the data set, ``(3, H, W)`` uint8."""
        image = self.reader.decode(path, 3)
        if self.size is not None and (image.height, image.width) != self.size:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    def fit(self, mask: np.ndarray) -> Tensor:
        """Brings a mask ``(H, W)`` uint8 to the size of the data set."""
        if self.size is not None and mask.shape != self.size:
            nearest = Image.fromarray(mask).resize((self.size[1], self.size[0]), Image.Resampling.NEAREST)
            mask = np.asarray(nearest).copy()
        return torch.from_numpy(mask)

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=like.device)[:, None, None] for v in (self.mean, self.std)
        )
        return mean, std

    def normalise(self, images: Tensor) -> Tensor:
        """Makes images ``(..., 3, H, W)`` in 0..1 float32 of mean 0 and deviation 1."""
        mean, std = self._constants(images)
        return (images - mean) / std

    def unit(self, inputs: Tensor) -> Tensor:
        """Returns normalised inputs ``(B, C, H, W)``, of which further channels are left out, as images in 0..1."""
        mean, std = self._constants(inputs)
        return (inputs[:, : len(self.mean)].float() * std + mean).clamp_(0, 1)

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Returns normalised inputs, of which further channels are left out, as ``(B, 3, H, W)`` uint8 pixels."""
        return (self.unit(inputs) * 255).round_().to(torch.uint8)
