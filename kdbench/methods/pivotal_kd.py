"""Pivotal-position logit distillation.

Paper: Yang, Shi, Ding, Wang, Qi, "Towards Efficient 3D Object Detection with Knowledge Distillation", NeurIPS 2022:
class scores are distilled at a few positions alone, by the teacher's confidence (``threshold``), its rank (``top``) or
a Gaussian around the centres of objects (``gaussian``). It is one part of SparseKD; the other is ``method=label_kd``.
Read: the authors' code, CVMI-Lab/SparseKD (``center_logit_kd_head.py``, ``anchor_logit_kd_head.py``, the configurations
of Waymo); of the paper its abstract alone. As there, scores are compared by the squared distance of their sigmoids, and
the released configurations take the Gaussian times the teacher's best score, at a weight of 7 (pillars), 10 or 15
(voxels).
Deviations: a position is a row of class scores, so with anchors one of them, where the code's anchor head takes all
anchors of a cell together. Gaussians are around true objects; in the code that trains with the labels of
``method=label_kd`` too, around those as well. On raw points, which have no grid, a point counts as one where it lies in
an object and not at all elsewhere. The code clamps probabilities at 1e-4 from 0 and 1. Its term on boxes, at a weight
of 0.2 for voxels and none for pillars, is left out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.pivotal_kd import pivotal_logit_loss, pivotal_positions, probabilities


class PivotalKD(Method):
    """Compares class scores where the teacher, or the truth, says that there is something.

    Args:
        threshold: Positions whose best score of the teacher is at or below it have no part.
        top: So many best scores of a sample say where; null for all.
        gaussian: Whether positions count by how near they are to the centre of an object.
        soft: Whether they count by the teacher's best score.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"peaks"})

    def __init__(
        self,
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        top: PositiveInt | None = None,
        gaussian: bool = True,
        soft: bool = True,
    ) -> None:
        super().__init__()
        self.threshold, self.top, self.gaussian, self.soft = threshold, top, gaussian, soft

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``pivotal``."""
        student, teacher = signals.pair("logits")
        assert isinstance(teacher, Logits)
        with torch.no_grad():
            scores = probabilities(teacher.values.movedim(teacher.class_dim, -1), teacher.law)
            shape = scores.shape[:-1]
            scores = scores.reshape(shape[0], shape[1:].numel(), scores.shape[-1])
            peaks = signals.cast.task.ops()["peaks"](signals.batch(), scores.shape[1]) if self.gaussian else None
            weight = pivotal_positions(scores, self.threshold, self.top, peaks, self.soft).view(shape)
        weight = weight.flatten() if student.mask is None else weight[student.mask]
        return {"pivotal": pivotal_logit_loss(student.rows(), teacher.rows(), weight, student.law)}
