"""Intra-class feature variation distillation.

Paper: Wang, Zhou, Jiang, Bai, Xu, "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020.
Centres are those of a sample and class; beside the similarities to them the paper's objective has pixel-wise KD, at
temperature 1. The weights are those under which Yang et al. (CIRKD, CVPR 2022) compare it; the authors' own run has 200
and a mean over classes too in KD, weight 10.
Deviations: the ignored label has no part in the mean, where the released code counts it with a difference of zero. The
adversarial term of SKD, which the authors add at weight 0.001, is left out. The label of a cell is that in its middle;
in their networks, which align corners, it is that in its corner. Grids of two sizes are pooled to the smaller one.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench import Context, Grid, Logits, Method, Need, Signals
from kdbench.functional.ifvd import class_variation_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import label_map, pixel_kd


class IFVD(Method):
    """Compares how far each position is from the mean of its class."""

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid), Need("logits", Logits))
    requires: ClassVar[frozenset[str]] = frozenset({"dense_label"})

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ifvd`` and ``kd``."""
        terms: dict[str, Tensor] = {}
        if ctx.wants("ifvd"):
            ours, theirs = signals.pair("feature")
            student, teacher = pool_to_smaller(ours.values, theirs.values, "ifvd")
            classes = signals.feature("logits", "student").values.shape[1]
            terms["ifvd"] = class_variation_loss(student, teacher, label_map(signals, student.shape[2:]), classes)
        if ctx.wants("kd"):
            terms["kd"] = pixel_kd(signals)
        return terms
