"""Relational knowledge distillation.

Paper: Park et al., "Relational Knowledge Distillation", CVPR 2019: distance-wise and angle-wise losses
(weights 25 and 50).
Deviations: means over pairs and triplets, as in the authors' code. Samples that coincide have no distance and no angle,
where the authors' code gives them a distance of 1e-6 and angles whose gradient has no bound.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench import Context, Method, Need, Signals, Vector
from kdbench.functional.rkd import angle_loss, distance_loss


class RKD(Method):
    """Compares distances and angles between the samples of a batch; widths may differ."""

    needs: ClassVar[tuple[Need, ...]] = (Need("pooled", Vector),)
    over_batch: ClassVar[bool] = True

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``rkd_distance`` and ``rkd_angle``."""
        student, teacher = (feature.values for feature in signals.pair("pooled"))
        losses = {"rkd_distance": distance_loss, "rkd_angle": angle_loss}
        return {term: loss(student, teacher) for term, loss in losses.items() if ctx.wants(term)}
