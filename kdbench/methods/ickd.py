"""Inter-channel correlation distillation.

Paper: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021,
ICKD-C on the last grid, with loss, scale and weight (2.5) of the authors' CIFAR-100 code.
Deviations: their second embedding, which no loss reads, is left out, and so is the KD term of their best rows. The
grid-level variant for dense tasks is not here. The paper's own text could not be read; where it scales otherwise than
the code, the code is followed.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from kdbench import Context, Grid, Method, Need, Signals
from kdbench.functional.ickd import channel_correlation_loss
from kdbench.methods.blocks import BatchNorm, conv


class ICKD(Method):
    """Compares which channels of the last grid go together; the student's are first brought to the teacher's width.

    Args:
        embed: Whether a 1x1 convolution and batch normalisation come before: ``always``, as in the authors' code, or
            only where the widths are ``unequal``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid),)

    def __init__(self, embed: Literal["always", "unequal"] = "always") -> None:
        super().__init__()
        self.when = embed

    def build(self, probe: Signals) -> None:
        """Makes the embedding."""
        student, teacher = probe.pair("feature")
        axes, widths = student.values.dim() - 2, (student.values.shape[1], teacher.values.shape[1])
        needed = self.when == "always" or widths[0] != widths[1]
        self.embed = nn.Sequential(conv(axes, *widths), BatchNorm(widths[1])) if needed else nn.Identity()

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ickd``."""
        student, teacher = signals.pair("feature")
        return {"ickd": channel_correlation_loss(self.embed(student.values), teacher.values)}
