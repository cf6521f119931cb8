"""Relational knowledge distillation.

Paper: Park et al., "Relational Knowledge Distillation", CVPR 2019: distance-wise and angle-wise losses
(weights 25 and 50).
Deviations: means over pairs and triplets, as in the authors' code. Samples that coincide have no distance and no angle,
where the authors' code gives them a distance of 1e-6 and angles whose gradient has no bound.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from kdbench import Context, Method, Need, Signals, Vector
from kdbench.functional.rkd import angle_loss, distance_loss


class RKD(Method):
    """Compares distances and angles between the samples of a batch; widths may differ.

    Args:
        samples: Most samples of a step, drawn where a batch has more: its triplets grow with the third power. None for
            all.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("pooled", Vector),)
    over_batch: ClassVar[bool] = True

    def __init__(self, samples: PositiveInt | None = None) -> None:
        super().__init__()
        self.samples = samples

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``rkd_distance`` and ``rkd_angle``."""
        student, teacher = (feature.values for feature in signals.pair("pooled"))
        if self.samples is not None and len(student) > self.samples:
            drawn = torch.randperm(len(student), generator=ctx.generator("rkd"))[: self.samples].to(student.device)
            student, teacher = student[drawn], teacher[drawn]
        losses = {"rkd_distance": distance_loss, "rkd_angle": angle_loss}
        return {term: loss(student, teacher) for term, loss in losses.items() if ctx.wants(term)}
