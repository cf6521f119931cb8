"""A learned augmentation that moves samples in space.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023; of images the six
numbers of an affine map. See :mod:`kdbench.augment.hard`. The mean stays at the identity: one that is learned too runs
off to a single place, and the student does not become equivariant.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench.augment.hard import Gaussian
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry, Warp


class HARDAffine(Gaussian):
    """Moves every sample as the task moves its own: images affinely, scenes by a rigid pose and scale."""

    requires: ClassVar[frozenset[str]] = frozenset({"warp"})

    def prepare(self, probe: Signals) -> tuple[str, ...]:
        """Keeps the task's warp."""
        warp = probe.cast.task.ops()["warp"]
        assert isinstance(warp, Warp)
        self.warp = warp
        return warp.moves

    def vary(self, batch: Batch, numbers: Tensor, ctx: Context) -> tuple[Batch, Carry]:
        """Moves each sample by its own numbers."""
        return self.warp(batch, numbers)
