"""Forward and reverse KL, weighed by where teacher and student differ.

Paper: Wu, Tao, Wang, Yang, Zhao, Wong, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
Language Models", COLING 2025.
Deviations: ``faithful=code`` is what the release of TAID makes of it, which takes the head's places in the order of the
vocabulary.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.akl import adaptive_kl_loss
from kdbench.functional.numerics import Faithful


class AKL(Method):
    """Where the laws differ on the classes that the teacher is sure of, the forward KL counts, elsewhere the reverse.

    Args:
        head: Mass of the classes that the teacher is sure of.
        faithful: ``paper``, or ``code`` for the release of TAID.
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, each=True),)
    # A softmax head: one class a row.
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})

    def __init__(
        self,
        head: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        faithful: Faithful = "paper",
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.head, self.faithful, self.temperature = head, faithful, temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``akl``."""
        student, teacher = signals.pair("logits")
        rows = student.rows(), teacher.rows(), self.head, self.temperature
        options = {"law": student.law, "weight": student.row_weight()}
        return {"akl": adaptive_kl_loss(*rows, faithful=self.faithful, **options)}
