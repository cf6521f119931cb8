"""What is done to images and their masks alike: a crop at a random scale, a mirror image, other light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.segmentation.sources.base import IGNORED

#: Of a pixel's light from red, green and blue (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Transforms:
    """Training augmentation whose random numbers belong to (seed, epoch, sample).

    Attributes:
        scale: Least and greatest factor by which an image is enlarged before a crop is cut out; null for none. Where it
            is then smaller than the crop, the rest is of no class.
        crop: Height and width of the crop, pixels; null for the size of the images.
        flip: Mirror every other image.
        colour: Largest share by which brightness, contrast and saturation change.
    """

    scale: tuple[float, float] | None = None
    crop: tuple[PositiveInt, PositiveInt] | None = None
    flip: bool = False
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise KDBenchError(f"data.transforms.scale: found {list(self.scale)}; expected 0 < least <= greatest")

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.scale is not None or self.crop is not None or self.flip or self.colour > 0

    def windows(self, sizes: np.ndarray, crop: tuple[int, int], keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Draws what of each image is cut out.

        Args:
            sizes: ``(B, 2)`` heights and widths.
            crop: Height and width that it is brought to.
            keys: ``(B,)`` numbers of the samples.
            seed: Of the run.
            epoch: Of the run.

        Returns:
            ``(B, 5)`` top, left, height and width in pixels of the image, which may lie outside of it; then -1 for what
            is mirrored and 1 for what is not.
        """
        drawn = rng.uniform(seed, "crop", epoch, index=keys, count=4)
        low, high = self.scale or (1.0, 1.0)
        window = np.array(crop) / (low + drawn[:, :1] * (high - low))
        corner = drawn[:, 1:3] * (sizes - window)
        mirrored = np.where(self.flip & (drawn[:, 3:] < 0.5), -1.0, 1.0)
        return np.concatenate([corner, window, mirrored], axis=1)

    def crops(
        self, images: Sequence[Tensor], masks: Sequence[Tensor], keys: np.ndarray, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Cuts a window out of each image and its mask.

        Args:
            images: ``(3, H, W)`` float each, zero where padding shall be.
            masks: ``(H, W)`` uint8 each.
            keys: ``(B,)`` numbers of the samples.
            seed: Of the run.
            epoch: Of the run.

        Returns:
            ``(B, 3, h, w)`` float and ``(B, h, w)`` int64, :data:`~tasks.segmentation.sources.base.IGNORED` outside.
        """
        sizes = np.array([mask.shape for mask in masks])
        crop = self.crop or (int(sizes[0, 0]), int(sizes[0, 1]))
        theta = _theta(sizes, self.windows(sizes, crop, keys, seed, epoch))
        if (sizes == sizes[0]).all():
            return _sample(torch.stack([*images]), torch.stack([*masks]), theta, crop)
        each = [_sample(i[None], m[None], t[None], crop) for i, m, t in zip(images, masks, theta, strict=True)]
        return torch.cat([image for image, _ in each]), torch.cat([mask for _, mask in each])

    def light(self, images: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        """Changes brightness, contrast and saturation of images ``(B, 3, H, W)`` in 0..1."""
        if not self.colour:
            return images
        drawn = rng.uniform(seed, "light", epoch, index=keys, count=3)
        factors = torch.from_numpy(1 + self.colour * (2 * drawn - 1)).to(images.dtype)
        bright, contrast, saturation = factors.T[:, :, None, None, None]
        images = images * bright
        grey = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        images = grey + saturation * (images - grey)
        mean = grey.mean((2, 3), keepdim=True)
        return (mean + contrast * (images - mean)).clamp_(0, 1)


def _theta(sizes: np.ndarray, windows: np.ndarray) -> Tensor:
    """Returns the affine maps ``(B, 2, 3)`` that read the windows, in the coordinates of ``grid_sample``."""
    tall, wide = sizes.T
    top, left, height, width, mirrored = windows.T
    theta = np.zeros((len(sizes), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 2] = mirrored * width / wide, (2 * left + width) / wide - 1
    theta[:, 1, 1], theta[:, 1, 2] = height / tall, (2 * top + height) / tall - 1
    return torch.from_numpy(theta)


def _sample(images: Tensor, masks: Tensor, theta: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    grid = F.affine_grid(theta, [len(images), 1, *size], align_corners=False)
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    below = masks[:, None].float() - IGNORED  # so that the padding with zeros is of no class
    labels = F.grid_sample(below, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return seen, (labels[:, 0] + IGNORED).round_().long()
