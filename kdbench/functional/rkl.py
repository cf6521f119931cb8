"""Reverse KL: the student's law against the teacher's."""

from __future__ import annotations

from torch import Tensor

from kdbench.features import Law, ValueLaw
from kdbench.functional.divergence import VALUES, divergence
from kdbench.functional.numerics import check_same_shape, weighted_mean


def reverse_kl_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    law: Law | ValueLaw = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n KL(p_s || p_t)``: the loss of knowledge distillation with its two laws exchanged.

    Gu, Dong, Wei & Huang, MiniLLM (ICLR 2024), section 2: a student that cannot be all of its teacher leaves out what
    is rare instead of covering it thinly. Of plain predicted values it is the squared error, which has no direction.

    Args:
        student: logits, or predicted values, (N, C).
        teacher: likewise (N, C).
        temperature: T > 0; of logits alone.
        law: ``"categorical"``, ``"bernoulli"`` (a sum over classes), ``"gaussian"`` or ``"plain"``.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> reverse_kl_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
        tensor(0.4338)
    """
    check_same_shape(student, teacher, "reverse_kl_loss")  # divergence() has the two the other way round
    loss = weighted_mean(divergence(teacher, student, temperature, law), weight)
    return loss if law in VALUES else temperature**2 * loss
