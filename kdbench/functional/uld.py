"""Universal logit distillation: laws over different vocabularies, compared by their sorted probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.features import Law
from kdbench.functional.divergence import LOGITS
from kdbench.functional.numerics import upcast, weighted_mean


def universal_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    *,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``mean_n sum_i |p_s(i) - p_t(i)|`` over ranks i, both laws sorted from the most probable class down.

    Boizard, El Haddad, Hudelot & Colombo (TMLR 2025), equation 4: the Wasserstein distance of two laws whose classes
    cost alike to move. A law over fewer classes is padded by zeros. Which class is which does not count: a teacher
    whose classes are in another order has the loss zero.

    Args:
        student: logits (N, C).
        teacher: logits (N, K) of as many rows.
        temperature: T > 0; divides both.
        law: ``"categorical"``, or ``"bernoulli"`` for the sorted probabilities of independent classes.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar from 0 to 2 (of a softmax), float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> universal_loss(torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.7, 0.2, 0.1]]).log())
        tensor(0.2000)
    """
    if len(student) != len(teacher):
        raise KDBenchError(
            f"universal_loss: found {len(student)} rows of the student and {len(teacher)} of the teacher"
        )
    if law not in LOGITS:
        raise KDBenchError(f"universal_loss: law={law!r} is unknown; {nearest(str(law), LOGITS)}")
    widest = max(student.shape[1], teacher.shape[1])
    ranked = []
    for logits in (student, teacher):
        z = upcast(logits) / temperature
        p = z.softmax(1) if law == "categorical" else z.sigmoid()
        ranked.append(F.pad(p.sort(1, descending=True).values, (0, widest - p.shape[1])))
    return weighted_mean((ranked[0] - ranked[1]).abs().sum(1), weight)
