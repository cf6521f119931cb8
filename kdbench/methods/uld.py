"""Laws over different vocabularies, by their sorted probabilities.

Paper: Boizard, El Haddad, Hudelot, Colombo, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
Loss for LLMs", TMLR 2025. Equation 4, with the cross-entropy of the true words; weights as in the authors' code, 1 and
1.5, at temperature 1.
Where the two cut a text into different numbers of words, the first of each are compared, one by one, as in that code.
The loss does not know which word is which: a teacher that says the same of other words has the loss zero.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals
from kdbench.functional.uld import universal_loss


class ULD(Method):
    """Holds the sorted probabilities of student and teacher against each other.

    Args:
        temperature: Divides both logits.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    renames: ClassVar[bool] = True

    def __init__(self, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``uld``."""
        student, teacher = signals.pair("logits")
        rows, others, weight = aligned(student, teacher)
        return {"uld": universal_loss(rows, others, self.temperature, law=student.law, weight=weight)}


def aligned(student: Logits, teacher: Logits) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the first rows of each sample, as many of both, and the weights that the student's have.

    Args:
        student: ``(N, C)`` rows that count.
        teacher: ``(M, K)`` rows, of the same samples.
    """
    first, second, weight = student.rows(), teacher.rows(), student.row_weight()
    owners = student.sample(), teacher.sample()
    counts = [torch.bincount(owner, minlength=len(student.values)) for owner in owners]
    if torch.equal(*counts):
        return first, second, weight
    kept = []
    for owner, own, other in zip(owners, counts, reversed(counts), strict=True):
        place = torch.arange(len(owner), device=owner.device) - (own.cumsum(0) - own)[owner]
        kept.append(place < other[owner])
    return first[kept[0]], second[kept[1]], None if weight is None else weight[kept[0]]
