"""A learned augmentation that mixes images two by two.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023. See
:mod:`kdbench.augment.hard`: the teacher may not change its mind, so that a mixture keeps the label of its first image.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdbench.augment.hard import Gaussian, unmoved
from kdbench.functional.hard_mix import mix_by_weights
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry


class HARDMix(Gaussian):
    """Mixes every image with another one of its batch by weights that are drawn for each of a few cells.

    Args:
        cells: So many across and down.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pixels"})

    def __init__(
        self,
        cells: PositiveInt = 3,
        start: float = -3.0,
        temperature: PositiveFloat = 1.0,
        turns: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(start, temperature, turns)
        self.cells = cells

    def prepare(self, probe: Signals) -> tuple[str, ...]:
        """Names the weight of each cell."""
        return tuple(f"weight_{row}{column}" for row in range(self.cells) for column in range(self.cells))

    def vary(self, batch: Batch, numbers: Tensor, ctx: Context) -> tuple[Batch, Carry]:
        """Mixes each image with its own weights; in a batch of one there is none to mix with."""
        order = torch.randperm(len(batch), generator=ctx.generator("partners")).to(batch.ids.device)
        weights = numbers.view(-1, self.cells, self.cells)
        return batch.with_inputs(mix_by_weights(batch.inputs, batch.inputs[order], weights)), unmoved
