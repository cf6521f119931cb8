"""Variational information distillation.

Paper: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019:
the Gaussian variational distribution with one variance a channel.
Deviation: a mean over elements instead of their sum, as in RepDistiller. The variances train, as in the paper; one
well-known reimplementation leaves them at their initial value.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Grid, KDBenchError, Method, Need, Signals
from kdbench.functional.pool import pool_to_smaller
from kdbench.functional.vid import softplus_inverse, vid_loss
from kdbench.methods.blocks import conv, levels
from kdbench.signals import total


class VID(Method):
    """Makes the teacher's grids likely given the student's, at every grid that both give.

    Args:
        init_variance: Variance of every channel at the start.
        eps: Least variance.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Grid, many=True),)

    def __init__(self, init_variance: PositiveFloat = 5.0, eps: PositiveFloat = 1e-5) -> None:
        super().__init__()
        if init_variance <= eps:
            raise KDBenchError(f"method.init_variance: found {init_variance}, expected more than method.eps={eps}")
        self.init_variance = init_variance
        self.eps = eps

    def build(self, probe: Signals) -> None:
        """Makes regressors of the mean and the variances."""
        self.regressors, self.scales = nn.ModuleList(), nn.ParameterList()
        for student, teacher in levels(probe, "stages"):
            narrow, wide = student.values.shape[1], teacher.values.shape[1]
            first, *rest = (conv(student.values.dim() - 2, width, wide) for width in (narrow, wide, wide))
            self.regressors.append(nn.Sequential(first, *(m for layer in rest for m in (nn.ReLU(), layer))))
            scale = torch.full((wide,), softplus_inverse(self.init_variance - self.eps))
            self.scales.append(nn.Parameter(scale))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``vid``, the sum over grids."""
        losses = []
        for (s, t), regressor, scale in zip(levels(signals, "stages"), self.regressors, self.scales, strict=True):
            student, teacher = pool_to_smaller(s.values, t.values, "vid")
            losses.append(vid_loss(regressor(student), teacher, scale, self.eps))
        return {"vid": total(losses)}
