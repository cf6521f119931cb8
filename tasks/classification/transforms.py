"""What is done to images: the standard augmentation of a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError

#: Sides of a resized crop, width over height (Szegedy et al., 2015; torchvision's RandomResizedCrop).
RATIO = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class Transforms:
    """Training augmentation whose random numbers belong to (seed, epoch, sample).

    Attributes:
        crop: Pixels of border from which a crop of the same size is cut.
        flip: Mirror every other image.
        scale: Least and greatest share of the area that a crop keeps before it is resized; None for none.
        border: What it is made of: ``black``, or ``edge``, which repeats the outermost pixels.
    """

    crop: NonNegativeInt = 0
    flip: bool = False
    scale: tuple[float, float] | None = None
    border: Literal["black", "edge"] = "black"

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise KDBenchError(f"data.transforms.scale: found {list(self.scale)}; expected 0 < least <= greatest <= 1")

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return bool(self.crop or self.flip or self.scale)

    def boxes(self, heights: np.ndarray, widths: np.ndarray, keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Draws the box of a resized crop for each image: the first of ten that fits, else the centre.

        Returns:
            ``(B, 4)`` top, left, height and width, pixels.
        """
        assert self.scale is not None
        drawn = rng.uniform(seed, "box", epoch, index=keys, count=2 * TRIES + 2)
        share = self.scale[0] + drawn[:, :TRIES] * (self.scale[1] - self.scale[0])
        low, high = np.log(RATIO)
        ratio = np.exp(low + drawn[:, TRIES : 2 * TRIES] * (high - low))
        area = (heights * widths)[:, None] * share
        tries = np.stack([np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))], axis=-1)
        limits = np.stack([heights, widths], axis=-1)
        fits = np.logical_and.reduce((tries >= 1) & (tries <= limits[:, None]), axis=-1)
        size = tries[np.arange(len(keys)), fits.argmax(1)]
        # Where none fits: the whole image, or what of it keeps the ratio.
        whole = np.stack([np.minimum(heights, np.rint(widths / RATIO[0])), np.minimum(widths, heights * RATIO[1])], -1)
        fitted = np.logical_or.reduce(fits, axis=1)[:, None]
        size = np.where(fitted, size, np.maximum(1, np.rint(whole)))
        corner = np.where(fitted, np.floor(drawn[:, 2 * TRIES :] * (limits - size + 1)), (limits - size) // 2)
        return np.concatenate([corner, size], axis=1).astype(np.int64)

    def resized_crops(self, images: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        """Cuts a random box out of each image of a batch and resizes it to the size of the image, bilinearly."""
        height, width = images.shape[2:]
        sides = np.full(len(keys), height), np.full(len(keys), width)
        top, left, tall, wide = torch.from_numpy(self.boxes(*sides, keys, seed, epoch)).float().unbind(1)
        theta = torch.zeros(len(keys), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = wide / width, tall / height
        theta[:, 0, 2], theta[:, 1, 2] = (2 * left + wide) / width - 1, (2 * top + tall) / height - 1
        grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        cut = torch.nn.functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return cut.round_().to(images.dtype) if images.dtype == torch.uint8 else cut

    def __call__(self, images: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        """Crops and flips a batch.

        Args:
            images: ``(B, C, H, W)`` in 0..255 or 0..1.
            keys: ``(B,)`` numbers of the samples.
            seed: Of the run.
            epoch: Of the run.
        """
        if not self.crop and not self.flip:
            return images
        height, width = images.shape[2:]
        rows, columns = torch.arange(height).expand(len(images), -1), torch.arange(width).expand(len(images), -1)
        if self.flip:
            mirrored = torch.from_numpy(rng.uniform(seed, "flip", epoch, index=keys) < 0.5)
            columns = torch.where(mirrored, width - 1 - columns, columns)
        if self.crop:
            drawn = rng.uniform(seed, "crop", epoch, index=keys, count=2)
            shifts = torch.from_numpy(np.floor(drawn * (2 * self.crop + 1)).astype(np.int64))
            # What has one row (a signal) is moved along it alone.
            vertical = self.crop if height > 1 else 0
            if self.border == "black":
                images = torch.nn.functional.pad(images, (self.crop, self.crop, vertical, vertical))
            else:
                columns_of, rows_of = (
                    torch.arange(-c, n + c).clamp(0, n - 1) for c, n in ((self.crop, width), (vertical, height))
                )
                images = images[:, :, rows_of][..., columns_of]
            rows = rows + (shifts[:, :1] if vertical else 0)
            columns = columns + shifts[:, 1:]
        # One gather over flat pixels does both.
        places = (
            (rows[:, :, None] * images.shape[3] + columns[:, None, :])
            .flatten(1)[:, None]
            .expand(-1, images.shape[1], -1)
        )
        return images.flatten(2).gather(2, places).unflatten(2, (height, width))
