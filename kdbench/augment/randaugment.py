"""Operations on single images, at random.

Papers:
    RandAugment: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search
        Space", CVPR Workshops 2020.
    TrivialAugment: Müller, Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021.
Operations and strengths are torchvision's, under the named draws of a run, on pixels from 0 to 1 whatever a network's
normalisation. Images that drew the same operation and sign are done together: RandAugment has one strength for all
anyway, TrivialAugment one for each such group of a batch, where the paper draws one for each image. Where what is known
of an image is known of its pixels, operations that would move these are left out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from kdbench.augment.base import Augmentation
from kdbench.functional.randaugment import rand_augment, trivial_augment
from kdbench.signals import Signals
from kdbench.task import Batch


class TrivialAugment(Augmentation):
    """One operation for each image, of a random strength."""

    requires: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def build(self, probe: Signals) -> None:
        """Learns whether labels stay true where what is in an image moves."""
        super().build(probe)
        self.moves = "dense_label" not in probe.cast.task.capabilities

    def change(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Changes the pixels."""
        pixels = self.applied(self.ops["to_pixels"](batch.inputs), draw)
        return batch.with_inputs(self.ops["to_inputs"](pixels).to(batch.inputs.dtype))

    def applied(self, pixels: Tensor, draw: torch.Generator) -> Tensor:
        """Returns other pixels ``(B, C, H, W)`` in 0..1."""
        return trivial_augment(pixels, draw, self.moves)


class RandAugment(TrivialAugment):
    """Some operations one after the other for each image, all of one strength.

    Args:
        number: Of operations.
        magnitude: Share of their full strength.
        teacher: What roles beside the student read: the ``same`` images, or the ``clean`` ones.
    """

    def __init__(
        self,
        number: PositiveInt = 2,
        magnitude: Annotated[float, Field(ge=0, le=1)] = 0.3,
        teacher: Literal["same", "clean"] = "same",
    ) -> None:
        super().__init__(teacher)
        self.number = number
        self.magnitude = magnitude

    def applied(self, pixels: Tensor, draw: torch.Generator) -> Tensor:
        """Returns other pixels ``(B, C, H, W)`` in 0..1."""
        return rand_augment(pixels, draw, self.number, self.magnitude, self.moves)
