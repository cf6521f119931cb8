"""Boxes of one sample in another.

Papers:
    CutMix: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    SaliencyMix: Uddin, Monira, Shin, Chung, Bae, "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
        Regularization", ICLR 2021.
A class for the whole sample becomes the mixture of both by the share of positions that each has; classes by position
stay exact. Deviations: samples of a batch draw boxes of their own (``per=batch`` gives them one size, as in the
release), and a share of the samples is mixed (``portion``) where the release mixes a share of the batches. Saliency is
the spectral residual (Hou, Zhang, CVPR 2007) in place of the fine-grained one of OpenCV, hence ``approximate``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdbench.augment.base import Mixing
from kdbench.functional.mix import box_masks, spectral_saliency
from kdbench.task import Batch, Task


class CutMix(Mixing):
    """A box of the partner takes the place of that of the sample."""

    @classmethod
    def takes(cls, task: Task | type[Task]) -> frozenset[str]:
        """Classes by position go with their box, so that each position still has one."""
        return cls.removes - {"single_label", "dense_label"} if "dense_label" in task.capabilities else cls.removes

    def share(self, batch: Batch, order: Tensor, own: Tensor, draw: torch.Generator) -> Tensor:
        """Returns one outside of the boxes and zero inside, ``(B, *size)``."""
        size = batch.inputs.shape[2:]
        return box_masks(size, own, self.centre(batch, order, draw))

    def centre(self, batch: Batch, order: Tensor, draw: torch.Generator) -> Tensor:
        """Draws the middle of each box anywhere, as shares of the axes ``(B, axes)``."""
        drawn = torch.rand(len(batch), batch.inputs.dim() - 2, generator=draw)
        return drawn.to(order.device)


class SaliencyMix(CutMix):
    """The box lies about the most salient position of the partner."""

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"

    def centre(self, batch: Batch, order: Tensor, draw: torch.Generator) -> Tensor:
        """Returns the most salient position of each partner, as shares of the axes ``(B, 2)``."""
        places = spectral_saliency(batch.inputs).flatten(1).argmax(1)[order]
        width = batch.inputs.shape[3]
        found = torch.stack([places // width, places % width], 1)
        return (found + 0.5) / found.new_tensor(batch.inputs.shape[2:])
