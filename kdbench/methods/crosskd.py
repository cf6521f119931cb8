"""Cross-head distillation.

Paper: Wang, Chen, Zheng, Li, Cheng, Hou, "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR
2024: the student's features inside its head go through the rest of the teacher's head, and what comes out is compared
with what the teacher says: class scores by a quality focal loss, boxes by GIoU, or the laws of their edges (GFL) by
KL, each row weighed by the teacher's best score.
Read: the authors' code, jbwang1997/CrossKD (``crosskd_retinanet.py``, ``crosskd_gfl.py``, ``kd_loss.py``, their
configurations); of the paper its abstract alone. As there, features take on mean and deviation of the teacher's by
channel (``align``), sums are divided by the number of assigned rows, that over edges by the sum of its weights.
Deviations: features are aligned behind the activation, in the code before it; the code leaves out rows that its
assigner ignores. Features of the head must be as wide as the teacher's. Only what detectors with one shared head give
is compared: FCOS' centre-ness is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from kdbench import Context, Feature, KDBenchError, Levels, Method, Need, Role, Signals
from kdbench.functional.crosskd import align_scale, box_overlap_loss, quality_focal_loss
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import weighted_mean
from kdbench.needs import STUDENT

TOWERS = ("cls_tower", "reg_tower")


class CrossKD(Method):
    """Compares what the teacher's head says of the student's features with what it says of its own.

    Args:
        align: Whether features of the student take on the teacher's scale; False hands them on as they are.
    """

    needs: ClassVar[tuple[Need, ...]] = tuple(Need(name, Levels) for name in TOWERS)
    requires: ClassVar[frozenset[str]] = frozenset({"cross_head", "assigned"})
    roles: ClassVar[Mapping[str, Role]] = {
        "student": STUDENT,
        "teacher": Role("frozen", side="teacher", init="trained", grad="input"),
    }
    over_batch: ClassVar[bool] = True

    def __init__(self, align: bool = True) -> None:
        super().__init__()
        self.align = align

    def build(self, probe: Signals) -> None:
        """Checks that the teacher's head can read the student's features."""
        for name in TOWERS:
            student, teacher = (feature.values.shape[1] for feature in probe.pair(name))
            if student != teacher:
                raise KDBenchError(
                    f"CrossKD: {name!r} is {student} wide in the student and {teacher} in the teacher, whose head "
                    "reads both: choose a pair whose heads are of one width"
                )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``cls`` and ``reg``."""
        batch, (ours, theirs) = signals.batch(), zip(*(signals.pair(name) for name in TOWERS), strict=True)
        towers, taught_by = ([feature.maps() for feature in side] for side in (ours, theirs))
        taught_by = [[values.detach() for values in maps] for maps in taught_by]
        if self.align:
            pairs = zip(towers, taught_by, strict=True)
            towers = [[align_scale(s, t) for s, t in zip(*maps, strict=True)] for maps in pairs]
        crossed = self._said(signals, towers)
        with torch.no_grad():
            taught = self._said(signals, taught_by)
            student = signals.cast.model("student")
            assigned = signals.cast.task.ops()["assigned"](student, batch, taught["boxes"]) >= 0
            positives = (assigned if batch.distilled is None else assigned[batch.distilled]).sum()

        def rows(name: str, found: Mapping[str, Feature]) -> Tensor:
            values = found[name].values
            return (values if batch.distilled is None else values[batch.distilled]).flatten(0, 1)

        scores, of_teacher = rows("logits", crossed), rows("logits", taught)
        weight = of_teacher.sigmoid().amax(1)
        if "edges" in taught:
            edges = (rows("edges", found).flatten(0, 1) for found in (crossed, taught))
            reg = weighted_mean(categorical_kl(*edges), weight.repeat_interleave(4))
        else:
            reg = box_overlap_loss(rows("boxes", crossed), rows("boxes", taught), weight, positives)
        return {"cls": quality_focal_loss(scores, of_teacher, positives), "reg": reg}

    def _said(self, signals: Signals, towers: list[list[Tensor]]) -> Mapping[str, Feature]:
        """Returns what the rest of the teacher's head says of maps."""
        said: Mapping[str, Feature] = signals.cast.task.ops()["cross_head"](signals.cast.model("teacher"), *towers)
        return said
