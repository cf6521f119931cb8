"""Skewed KL: the second law is mixed with some of the first."""

from __future__ import annotations

from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Law
from kdbench.functional.laws import kl, log_laws, mixture, softened_mean


def skew_kl_loss(
    student: Tensor,
    teacher: Tensor,
    skew: float = 0.1,
    temperature: float = 1.0,
    *,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n KL(p_t || a p_t + (1 - a) p_s)``.

    Ko, Kim, Chen & Yun, DistiLLM (ICML 2024). The gradient stays bounded where the student gives no probability
    to what the teacher says; at a = 0 it is the KL of distillation.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        skew: a, from 0 to below 1.
        temperature: T > 0.
        law: ``"categorical"``, or ``"bernoulli"`` (a sum over classes).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: the skew is out of range, shapes differ, or the law is unknown.

    Example:
        >>> import torch
        >>> skew_kl_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
        tensor(0.2726)
    """
    log_s, log_t = _laws(student, teacher, skew, temperature, law, "skew_kl_loss")
    return softened_mean(kl(log_t, mixture(log_t, log_s, skew)), temperature, weight)


def skew_reverse_kl_loss(
    student: Tensor,
    teacher: Tensor,
    skew: float = 0.1,
    temperature: float = 1.0,
    *,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n KL(p_s || (1 - a) p_t + a p_s)``; the rest as :func:`skew_kl_loss`.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        skew: a, from 0 to below 1; at 0 it is the reverse KL.
        temperature: T > 0.
        law: ``"categorical"``, or ``"bernoulli"`` (a sum over classes).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> skew_reverse_kl_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
        tensor(0.3173)
    """
    log_s, log_t = _laws(student, teacher, skew, temperature, law, "skew_reverse_kl_loss")
    return softened_mean(kl(log_s, mixture(log_s, log_t, skew)), temperature, weight)


def _laws(
    student: Tensor, teacher: Tensor, skew: float, temperature: float, law: Law, what: str
) -> tuple[Tensor, Tensor]:
    if not 0 <= skew < 1:
        raise KDBenchError(f"{what}: skew={skew:g}, expected a number from 0 to below 1")
    return log_laws(student, teacher, temperature, law, what)
