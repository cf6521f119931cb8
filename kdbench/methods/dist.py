"""Distillation from a stronger teacher.

Paper: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022: inter-class and
intra-class relations by Pearson correlation, times T^2 as in the authors' code; beta and gamma are the weights.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.categorical import check_categorical
from kdbench.functional.dist import inter_class_loss, intra_class_loss


class DIST(Method):
    """Correlates the predictions, over the classes of each row and over the rows under each class.

    Args:
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    # A softmax head: one class a row.
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})
    over_batch: ClassVar[bool] = True

    def __init__(self, temperature: PositiveFloat = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``inter`` and ``intra``; row weights count in ``inter``, the one that is a mean over rows."""
        student, teacher = signals.pair("logits")
        check_categorical(student.law, "DIST")
        rows = (student.rows(), teacher.rows(), self.temperature)
        return {"inter": inter_class_loss(*rows, weight=student.row_weight()), "intra": intra_class_loss(*rows)}
