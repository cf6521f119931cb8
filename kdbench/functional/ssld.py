"""Label-free divergences between two predictions, and the choice of the samples that a teacher is surest of."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.features import Law
from kdbench.functional.numerics import check_same_shape, upcast

Divergence = Literal["js", "symmetric_kl", "soft_ce"]


def _log_laws(logits: Tensor, law: Law) -> Tensor:
    """Log-probabilities (N, laws, outcomes): one law over classes, or one of two outcomes for each class."""
    logits = upcast(logits)
    if law == "categorical":
        return logits.log_softmax(dim=1)[:, None]
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=2)


def label_free_divergence(
    student: Tensor, teacher: Tensor, divergence: Divergence = "js", law: Law = "categorical"
) -> Tensor:
    """Divergence between the predictions p of the student and q of the teacher, per row.

    * ``js``: ``KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``, at most log 2 for each law.
    * ``symmetric_kl``: ``KL(p || q) / 2 + KL(q || p) / 2``.
    * ``soft_ce``: ``-sum q log p``, whose minimum is the teacher's entropy.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        divergence: one of the three.
        law: ``"categorical"``, or ``"bernoulli"`` for a sum over the classes of a sigmoid head.

    Returns:
        (N,), float32 for low-precision input.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> [round(label_free_divergence(student, teacher, d).item(), 4) for d in ("js", "symmetric_kl", "soft_ce")]
        [0.0895, 0.3808, 0.6931]
    """
    check_same_shape(student, teacher, "label_free_divergence")
    log_p, log_q = _log_laws(student, law), _log_laws(teacher, law)
    p, q = log_p.exp(), log_q.exp()
    if divergence == "js":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        terms = (p * (log_p - log_m) + q * (log_q - log_m)) / 2
    elif divergence == "symmetric_kl":
        terms = (p - q) * (log_p - log_q) / 2
    elif divergence == "soft_ce":
        terms = -q * log_p
    else:
        raise KDBenchError(
            f"divergence={divergence!r} is unknown; {nearest(str(divergence), ('js', 'symmetric_kl', 'soft_ce'))}"
        )
    return terms.sum(dim=(1, 2))


def surest(confidence: Tensor, predicted: Tensor, keep: float) -> Tensor:
    """Chooses the share of samples of each predicted class that the teacher is surest of.

    Args:
        confidence: (N,).
        predicted: class of each sample (N,), integers from 0.
        keep: share of each class in (0, 1], rounded up.

    Returns:
        (N,) bool; among equals the lower index comes first.

    Example:
        >>> surest(torch.tensor([0.9, 0.5, 0.7, 0.4]), torch.tensor([1, 1, 1, 0]), keep=0.5)
        tensor([ True, False,  True,  True])
    """
    order = confidence.argsort(descending=True, stable=True)
    order = order[predicted[order].argsort(stable=True)]
    sizes = torch.bincount(predicted)
    of_class = predicted[order]
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[of_class]
    chosen = torch.zeros_like(predicted, dtype=torch.bool)
    chosen[order] = rank < (keep * sizes.double()).ceil()[of_class]
    return chosen
