"""The alpha-beta divergence of two laws."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.features import Law
from kdbench.functional.laws import by_row, log_laws, softened_mean


def alpha_beta_loss(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    temperature: float = 1.0,
    *,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n D(p_t, p_s)``, the alpha-beta divergence of the teacher p and the student q.

    ``D = -1 / (a b) * sum_c [p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)]``; where a, b or a + b is zero,
    its limit. Wang et al., ABKD (ICML 2025), after Cichocki, Cruces & Amari (Entropy 2011). (1, 0) is the KL of
    distillation, (0, 1) the reverse one, (.5, .5) four times the squared Hellinger distance, (0, 0) half the squared
    difference of the logs. Powers are taken of logs, as a power below 1 of a probability has no bounded derivative.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        alpha: power of the teacher; a larger one looks more at the classes that are far off.
        beta: power of the student; a larger one looks more at the classes that the student is sure of.
        temperature: T > 0.
        law: ``"categorical"``, or ``"bernoulli"`` (a sum over classes).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: shapes differ, or the law is unknown.

    Example:
        >>> z = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> alpha_beta_loss(*z), alpha_beta_loss(*z, 1.0, 0.0), alpha_beta_loss(*z, 0.0, 1.0)
        (tensor(0.3690), tensor(0.3278), tensor(0.4338))
    """
    log_q, log_p = log_laws(student, teacher, temperature, law, "alpha_beta_loss")
    return softened_mean(by_row(_divergence(log_p, log_q, alpha, beta)), temperature, weight)


def _divergence(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """Returns what each class adds to the divergence."""
    gap = log_p - log_q
    if a == b == 0:
        return gap.square() / 2
    if b == 0:
        p, q = (a * log_p).exp(), (a * log_q).exp()
        return (p * a * gap - p + q) / a**2
    if a == 0:
        p, q = (b * log_p).exp(), (b * log_q).exp()
        return (p - q - q * b * gap) / b**2
    if a + b == 0:
        return (torch.expm1(a * gap) - a * gap) / a**2
    p, q = ((a + b) * log_p).exp(), ((a + b) * log_q).exp()
    return (a * p + b * q - (a + b) * (a * log_p + b * log_q).exp()) / (a * b * (a + b))
