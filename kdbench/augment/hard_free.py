"""A learned augmentation of free pixels.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023. See
:mod:`kdbench.augment.hard`. What is learned are some changes of an image, each no larger than a bound; every image gets
one of them, added or taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench.augment.hard import HARD, unmoved
from kdbench.errors import KDBenchError
from kdbench.functional.hard_free import root_mean_square, within_norm
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry


class HARDFree(HARD):
    """Adds one of several learned changes to every image, or takes it away.

    Args:
        changes: How many there are.
        radius: Largest root mean square of one, in pixels from 0 to 1.
        start: First natural logarithm of their root mean square.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def __init__(
        self,
        changes: PositiveInt = 8,
        radius: PositiveFloat = 0.1,
        start: float = -7.0,
        temperature: PositiveFloat = 1.0,
        turns: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(temperature, turns)
        self.count, self.radius, self.start = changes, radius, start

    def build(self, probe: Signals) -> None:
        """Makes the changes, of the size of the images."""
        ops = probe.cast.task.ops()
        self.to_pixels, self.to_inputs = ops["to_pixels"], ops["to_inputs"]
        shape = (self.count, *probe.batch().inputs.shape[1:])
        self.change = nn.Parameter(torch.tensor(self.start).exp() * torch.randn(shape))

    def augment(self, batch: Batch, ctx: Context) -> tuple[Batch, Carry]:
        """Draws which change each image gets, and its sign."""
        images: Tensor = batch.inputs
        if images.shape[1:] != self.change.shape[1:]:
            raise KDBenchError(
                f"hard_free has learned changes of images of {tuple(self.change.shape[1:])}, found one of "
                f"{tuple(images.shape[1:])}: give them one size, or take hard_affine"
            )
        drawn = torch.randint(2 * self.count, (len(batch),), generator=ctx.generator("hard")).to(images.device)
        changes = within_norm(self.change, self.radius)
        both = torch.cat([changes, -changes])[drawn]
        pixels = (self.to_pixels(images) + both).clamp(0, 1)
        return batch.with_inputs(self.to_inputs(pixels).to(images.dtype)), unmoved

    def readings(self) -> Mapping[str, float]:
        """Returns the root mean square of every change."""
        sizes = root_mean_square(within_norm(self.change.detach(), self.radius)).tolist()
        return {f"rms.{i}": size for i, size in enumerate(sizes)}
