"""How an image file becomes what a model reads: with the weights, all that using a model takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.task import Batch, DatasetInfo
from tasks.classification.sources.files import ImageFiles, Resize
from tasks.images import Reader


@dataclass(frozen=True)
class Preprocess:
    """Size, channels and normalisation of the images that a model learned from, and the names of their classes.

    Attributes:
        name: Of the data set.
        classes: Class names, in the order of the logits.
        mean: Per channel, of images in 0..1.
        std: Likewise.
        files: How image files are read, those of the data set and a user's; it names none.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: ImageFiles

    @classmethod
    def of(cls, info: DatasetInfo) -> Preprocess:
        """Returns what a record says."""
        told: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in info.inputs.items()}
        reader = Reader(background=told["background"], range=told["range"])
        resize = Resize(crop=told["crop"], side=told["side"], interpolation=told["interpolation"])
        files = ImageFiles((), told["size"], told["central"], reader, resize)
        return cls(info.name, tuple(info.classes), told["mean"], told["std"], files)

    def as_inputs(self) -> dict[str, Any]:
        """Returns what a record says beside the names, as JSON."""
        files = self.files
        own = {"size": files.size, "mean": self.mean, "std": self.std, "central": files.central}
        found = {**own, **asdict(files.reader), **asdict(files.resize)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.files.size

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=like.device)[:, None, None] for v in (self.mean, self.std)
        )
        return mean, std

    def normalise(self, pixels: Tensor) -> Tensor:
        """Makes ``(B, C, H, W)`` pixels (uint8, or float in 0..1) float32 of mean 0 and deviation 1."""
        mean, std = self._constants(pixels)
        unit = 255.0 if pixels.dtype == torch.uint8 else 1.0
        return (pixels * (1 / (unit * std))).sub_(mean / std)

    def unit(self, inputs: Tensor) -> Tensor:
        """Returns normalised inputs as pixels in 0..1."""
        mean, std = self._constants(inputs)
        return (inputs.float() * std + mean).clamp_(0, 1)

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Returns normalised inputs as ``(B, C, H, W)`` uint8 pixels."""
        return (self.unit(inputs) * 255).round_().to(torch.uint8)

    def read(self, path: Path) -> Batch:
        """Reads an image file as evaluation reads one."""
        pixels = self.files.one(path, self.channels)[None]
        return Batch(self.normalise(pixels), torch.tensor([-1]), torch.tensor([0]))
