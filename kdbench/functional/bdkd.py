"""Forward and reverse divergence, balanced per sample (BD-KD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.features import Law
from kdbench.functional.divergence import divergence
from kdbench.functional.numerics import upcast, weighted_mean


def entropy(logits: Tensor, temperature: float = 1.0, law: Law = "categorical") -> Tensor:
    """Entropy of the softened prediction in nats, per row of logits (N, C); of a sigmoid head summed over classes.

    Example:
        >>> entropy(torch.zeros(1, 4)), entropy(torch.zeros(1, 4), law="bernoulli")
        (tensor([1.3863]), tensor([2.7726]))
    """
    z = upcast(logits) / temperature
    if law == "bernoulli":
        return -(z.sigmoid() * F.logsigmoid(z) + (-z).sigmoid() * F.logsigmoid(-z)).sum(dim=1)
    log_p = F.log_softmax(z, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def balanced_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    *,
    major: float = 1.5,
    minor: float = 0.5,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """Forward plus reverse KL, weighted per sample by which of the two networks is more confident.

    Amara et al., BD-KD: Balancing the Divergences for Online Knowledge Distillation (2022), as summaries give it:
    ``T^2 * mean_n [w_f KL(p_t || p_s) + w_r KL(p_s || p_t)]``. Where the student is over-confident, that is, of less
    entropy than the teacher, the forward divergence, which spreads mass, has the weight ``major`` and the reverse one
    ``minor``; else the other way round: ``major`` is always that of ``KL(less confident || more confident)``. The
    choice itself carries no gradient.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0; of the divergences and of the entropies.
        major: weight of the divergence that the gap of the entropies favours.
        minor: weight of the other one; the plain sum of both divergences where it equals ``major``.
        law: ``"categorical"`` for a softmax head, ``"bernoulli"`` for a sigmoid head.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> student, teacher = torch.tensor([[4.0, 0.0]]), torch.zeros(1, 2)
        >>> balanced_loss(student, teacher), balanced_loss(student, teacher, major=1.0, minor=1.0)
        (tensor(2.2890), tensor(1.9281))
    """
    forward, reverse = divergence(student, teacher, temperature, law), divergence(teacher, student, temperature, law)
    over_confident = entropy(student, temperature, law) < entropy(teacher, temperature, law)
    balance = torch.where(over_confident, major, minor).to(forward.dtype)
    return temperature**2 * weighted_mean(balance * forward + (major + minor - balance) * reverse, weight)
