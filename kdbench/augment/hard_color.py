"""A learned augmentation of colours.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023; a scale and a shift
of each channel. See :mod:`kdbench.augment.hard`. Weighed by ``colours``, the augmentor also descends on the regulariser
of Suzuki, TeachAugment (CVPR 2022), which keeps the colours of an image in bounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from kdbench.augment.hard import VIEW, Gaussian, unmoved
from kdbench.functional.hard_color import color_affine, sliced_wasserstein
from kdbench.needs import Update
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry

#: Directions of colour space that the regulariser looks along.
DIRECTIONS = 10


class HARDColor(Gaussian):
    """Scales and shifts the channels of every image, in pixels from 0 to 1 whatever a network's normalisation."""

    requires: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def prepare(self, probe: Signals) -> tuple[str, ...]:
        """Keeps what the task says of pixels."""
        ops = probe.cast.task.ops()
        self.to_pixels, self.to_inputs = ops["to_pixels"], ops["to_inputs"]
        channels = probe.batch().inputs.shape[1]
        return tuple(f"{what}_{channel}" for what in ("scale", "shift") for channel in range(channels))

    def vary(self, batch: Batch, numbers: Tensor, ctx: Context) -> tuple[Batch, Carry]:
        """Recolours each image by its own numbers."""
        scale, shift = numbers.chunk(2, dim=1)
        colored = color_affine(self.to_pixels(batch.inputs), scale, shift)
        return batch.with_inputs(self.to_inputs(colored).to(batch.inputs.dtype)), unmoved

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Adds ``colours`` of the augmentor's update, the sliced Wasserstein distance to the images as they were."""
        terms = super().terms(signals, ctx)
        if ctx.wants("colours"):
            before, after = (self.to_pixels(signals.batch("teacher", view).inputs) for view in ("main", VIEW))
            directions = torch.randn(DIRECTIONS, before.shape[1], generator=ctx.generator("colours"))
            terms["colours"] = sliced_wasserstein(after, before, directions)
        return terms

    def updates(self) -> tuple[Update, ...]:
        """The augmentor's update has the regulariser too."""
        ascent, descent = super().updates()
        return replace(ascent, terms={**(ascent.terms or {}), "colours": 1.0}), descent
