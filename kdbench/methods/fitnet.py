"""Hints from an intermediate feature.

Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3.
Deviation: hint and task are trained together, as the later literature does, instead of one after the other.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.features import Grid
from kdbench.functional.fitnet import hint_loss
from kdbench.plugin import Method, Need
from kdbench.signals import Context, Signals

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class FitNet(Method):
    """A 1x1 convolution brings the student's grid to the teacher's width, where they are compared."""

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid),)

    def build(self, probe: Signals) -> None:
        """Makes the regressor."""
        student, teacher = probe.pair("feature")
        axes = student.values.dim() - 2
        self.regressor = _CONV[axes](student.values.shape[1], teacher.values.shape[1], 1)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``hint``."""
        student, teacher = signals.pair("feature")
        hint, guide = self.regressor(student.values), teacher.values
        if hint.shape[2:] != guide.shape[2:]:
            size: Any = tuple(map(min, hint.shape[2:], guide.shape[2:]))
            pool = _POOL[len(size)]
            hint, guide = pool(hint, size), pool(guide, size)
        return {"hint": hint_loss(hint, guide)}
