"""Images moved in space with gradients to what moves them, and what belongs to their pixels along with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kdbench.features import Feature, Logits
from kdbench.functional.hard_affine import affine_positions, grid_positions, sample_images
from kdbench.task import Batch, Carry, Warp

#: Positions of moved images ``(N, 2)`` to those that they come from ``(B, N, 2)``.
Source: TypeAlias = Callable[[Tensor], Tensor]
Deform: TypeAlias = Callable[[Batch, Source], tuple[Batch, Carry]]

#: What an affine map differs from the identity by, as in :func:`~kdbench.functional.hard_affine.affine_positions`.
AFFINE = ("scale_x", "shear_x", "shift_x", "shear_y", "scale_y", "shift_y")


#: Capabilities that :func:`image_ops` gives.
IMAGES = frozenset({"warp", "deform", "pixels"})


class Normalised(Protocol):
    """Knows how images are normalised."""

    def unit(self, inputs: Tensor) -> Tensor:
        """Returns normalised inputs as pixels in 0..1."""

    def normalise(self, pixels: Tensor) -> Tensor:
        """Returns pixels in 0..1 as normalised inputs."""


def image_ops(preprocess: Normalised, deform: Deform) -> dict[str, Callable[..., Any]]:
    """Returns what a task of images needs for :data:`IMAGES`."""
    pixels = {"to_pixels": preprocess.unit, "to_inputs": preprocess.normalise}
    return {"warp": affine(deform), "deform": deform, **pixels}


def deform_images(batch: Batch, source: Source) -> tuple[Batch, Carry]:
    """Moves images whose labels and features are of all of them."""
    return batch.with_inputs(_moved(batch.inputs, source)), lambda feature: feature


def deform_labelled(batch: Batch, source: Source, ignored: int) -> tuple[Batch, Carry]:
    """Moves images with the class of each pixel, and maps of class scores; beyond an edge no class is known.

    Args:
        batch: With targets ``(B, H, W)`` int64.
        source: Of the positions.
        ignored: Stands for no class.
    """
    height, width = batch.targets.shape[1:]
    with torch.no_grad():
        places = source(grid_positions(height, width, batch.inputs))
        nearest = sample_images(batch.targets[:, None].to(places.dtype), places, (height, width), "nearest")
        inside = (places.abs() <= 1).all(2).view(-1, height, width)
        targets = torch.where(inside, nearest[:, 0].to(batch.targets.dtype), ignored)

    def carry(feature: Feature) -> Feature:
        assert isinstance(feature, Logits)
        return replace(feature, values=_moved(feature.values, source))

    return batch.with_inputs(_moved(batch.inputs, source), targets=targets), carry


def affine(deform: Deform) -> Warp:
    """Returns the affine warp of images that are moved by ``deform``."""

    def move(batch: Batch, numbers: Tensor) -> tuple[Batch, Carry]:
        return deform(batch, lambda positions: affine_positions(positions, numbers))

    return Warp(AFFINE, move)


def _moved(maps: Tensor, source: Source) -> Tensor:
    height, width = maps.shape[2:]
    return sample_images(maps, source(grid_positions(height, width, maps)), (height, width))
