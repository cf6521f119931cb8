"""The generalised Jensen-Shannon divergence of two laws."""

from __future__ import annotations

from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Law
from kdbench.functional.laws import kl, log_laws, mixture, softened_mean


def jsd_loss(
    student: Tensor,
    teacher: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    *,
    normalise: bool = False,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n [beta KL(p_t || m) + (1 - beta) KL(p_s || m)]`` with ``m = beta p_t + (1 - beta) p_s``.

    Agarwal et al., On-Policy Distillation of Language Models (GKD, ICLR 2024). At beta 0 and 1, where the
    divergence vanishes, it is KL(p_t || p_s) and KL(p_s || p_t), as in released code; these are what it tends to when
    divided by beta or 1 - beta. So it jumps there, and its gradient shrinks towards them: ``normalise`` divides it by
    ``beta (1 - beta)``, which makes it of one size for all beta and continuous.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        beta: from 0 to 1.
        temperature: T > 0.
        normalise: divides by ``beta (1 - beta)``.
        law: ``"categorical"``, or ``"bernoulli"`` (a sum over classes).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: beta is outside of 0 to 1, shapes differ, or the law is unknown.

    Example:
        >>> import torch
        >>> z = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> jsd_loss(*z), jsd_loss(*z, normalise=True), jsd_loss(*z, 0.0)
        (tensor(0.0895), tensor(0.3582), tensor(0.3278))
    """
    if not 0 <= beta <= 1:
        raise KDBenchError(f"jsd_loss: beta={beta:g}, expected a number from 0 to 1")
    log_s, log_t = log_laws(student, teacher, temperature, law, "jsd_loss")
    if beta in (0, 1):
        return softened_mean(kl(log_s, log_t) if beta else kl(log_t, log_s), temperature, weight)
    log_m = mixture(log_t, log_s, beta)
    rows = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
    return softened_mean(rows / (beta * (1 - beta)) if normalise else rows, temperature, weight)
