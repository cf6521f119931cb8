"""Localisation distillation.

Paper: Zheng, Ye, Wang, Ren, Zuo, Hou, Cheng, "Localization Distillation for Dense Object Detection", CVPR 2022: the
laws of a box's edges are distilled where an anchor is assigned to a box, and in the valuable region around; class
scores where assigned.
Read: the authors' code, HikariTJU/LD (``ld_head.py``, ``atss_assigner.py``, ``kd_loss.py``, the configuration of GFL
R101-R50); of the paper its abstract alone. There an assigned row counts as the student's best score, a valuable one
as its overlap over four. Sums over rows are not divided by anything there, and a process has two images: so ``ld``
and ``vlr`` are twice the code's 0.25, per image, ``vlr`` a quarter of that. Its ``kd`` of 10 is a mean over 80
classes: 0.125 of a sum.
Deviations: class scores are compared as the independent sigmoids that they are, in the code by a softmax, and over
the assigned rows of all levels at once, where the code adds up means of levels. The code's ``fine-grained`` imitation
of features, weight 2, is left out (``method=fgfi``).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Boxes, Context, Edges, Logits, Method, Need, Signals
from kdbench.functional.kd import kd_loss
from kdbench.functional.ld import localisation_loss, valuable_region
from kdbench.methods.blocks import true_boxes


class LD(Method):
    """Compares the laws of edges where boxes are and around them.

    Args:
        temperature: Of the laws of edges.
        kd_temperature: Of class scores.
        share: The valuable region begins at this share of the threshold of an assigned row.
    """

    needs: ClassVar[tuple[Need, ...]] = (
        Need("edges", Edges),
        Need("logits", Logits),
        Need("boxes", Boxes, ("student",)),
    )
    requires: ClassVar[frozenset[str]] = frozenset({"boxes", "assigned"})

    def __init__(
        self,
        temperature: PositiveFloat = 10.0,
        kd_temperature: PositiveFloat = 2.0,
        share: Annotated[float, Field(ge=0, le=1)] = 0.25,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.kd_temperature = kd_temperature
        self.share = share

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ld``, ``vlr`` and ``kd``."""
        ours, theirs = signals.pair("edges")
        scores, of_teacher = signals.pair("logits")
        start = signals.feature("boxes", "student")
        assert isinstance(start, Boxes)
        with torch.no_grad():
            assigned = signals.cast.task.ops()["assigned"](signals.cast.model("student"), signals.batch(), start) >= 0
            if scores.mask is not None:
                assigned = assigned & scores.mask
            best = scores.values.movedim(scores.class_dim, -1).sigmoid().amax(-1)
            weight = torch.where(assigned, best, 0.0)
            around = valuable_region(*true_boxes(signals), start.anchors, start.level, self.share)
            if scores.mask is not None:
                around = torch.where(scores.mask, around, 0.0)
        terms = {
            name: localisation_loss(ours.values, theirs.values, counts, self.temperature)
            for name, counts in (("ld", weight), ("vlr", around))
        }
        mine, taught = (f.values.movedim(f.class_dim, -1)[assigned] for f in (scores, of_teacher))
        return terms | {"kd": kd_loss(mine, taught, self.kd_temperature, law=scores.law)}
