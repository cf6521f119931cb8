"""Fine-grained feature imitation.

Paper: Wang, Yuan, Zhang, Feng, "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019: features
are compared in cells one of whose anchors overlaps an object by more than half of what the best anchor does, through
an adapting convolution; the weight is 0.01.
Read: the authors' code, twangnh/Distilling-Object-Detectors (``anchor_target_layer.py``, ``trainval_net_sup.py``,
``vgg11.py``); of the paper its abstract alone. The detector there has one level. Here the best anchor is that of all
levels, as in what HikariTJU/LD calls finegrained, so that an object is imitated at the levels of its size.
Deviations: the convolution of size 3 has no ReLU behind it, which the code has for features that have one (``relu``).
The code begins after 400 steps.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench import Boxes, Context, Grid, KDBenchError, Method, Need, Signals
from kdbench.functional.fgfi import imitated_anchors, imitation_loss
from kdbench.functional.pool import resize
from kdbench.methods.blocks import conv, levels, true_boxes


class FGFI(Method):
    """Imitates the teacher's feature near objects.

    Args:
        share: An anchor is near an object where it overlaps more than this share of what the best one does.
        relu: Whether a ReLU follows the adapting convolution, for features of the teacher behind one.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True), Need("boxes", Boxes, ("student",)))
    requires: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def __init__(self, share: Annotated[float, Field(ge=0, lt=1)] = 0.5, relu: bool = False) -> None:
        super().__init__()
        self.share = share
        self.relu = relu

    def build(self, probe: Signals) -> None:
        """Makes the adapting convolution of each level."""
        pairs, start = levels(probe, "stages"), probe.feature("boxes", "student")
        assert isinstance(start, Boxes)
        found = len(start.level.unique())
        if found != len(pairs):
            raise KDBenchError(f"FGFI: found {len(pairs)} grids and anchors of {found} levels, expected as many")
        self.adapt = nn.ModuleList()
        for student, teacher in pairs:
            layers = [conv(2, student.values.shape[1], teacher.values.shape[1], 3, bias=True)]
            self.adapt.append(nn.Sequential(*layers, *([nn.ReLU()] if self.relu else [])))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``imitation``."""
        start, students, teachers, cells = signals.feature("boxes", "student"), [], [], []
        assert isinstance(start, Boxes)
        with torch.no_grad():
            near = imitated_anchors(*true_boxes(signals), start.anchors, self.share)
        for index, ((student, teacher), adapt) in enumerate(zip(levels(signals, "stages"), self.adapt, strict=True)):
            size = student.values.shape[2:]
            students.append(adapt(student.values))
            teachers.append(resize(teacher.values, size))
            cells.append(near[:, start.level == index].unflatten(1, (*size, -1)).any(3))
        return {"imitation": imitation_loss(students, teachers, cells)}
