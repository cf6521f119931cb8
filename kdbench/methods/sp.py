"""Similarity-preserving distillation.

Paper: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, eq. 1-4.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench import Context, Grid, Method, Need, Signals, Tokens, Vector
from kdbench.functional.sp import similarity_preserving_loss


class SP(Method):
    """Compares which samples of a batch look alike to student and teacher."""

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", (Grid, Tokens, Vector)),)
    over_batch: ClassVar[bool] = True

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``sp``."""
        student, teacher = signals.pair("feature")
        return {"sp": similarity_preserving_loss(student.values, teacher.values)}
