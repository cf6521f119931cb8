"""Divergences between a teacher's and a student's predictions, per row."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.features import Law
from kdbench.functional.numerics import check_same_shape, upcast


def categorical_kl(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """KL(p_teacher || p_student) of softened softmax distributions, per row and not scaled by T^2.

    ``p = softmax(logits / T)``; ``KL = sum_c p_t (log p_t - log p_s)``.

    Args:
        student: logits (N, C).
        teacher: logits (N, C). Not detached: a frozen teacher is the caller's choice.
        temperature: T > 0, a number or a scalar tensor.

    Returns:
        (N,), float32 for low-precision input.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> categorical_kl(torch.zeros(2, 2), logits)
        tensor([0.3278, 0.0000])
    """
    check_same_shape(student, teacher, "categorical_kl")
    log_s = F.log_softmax(upcast(student) / temperature, dim=1)
    log_t = F.log_softmax(upcast(teacher) / temperature, dim=1)
    return (log_t.exp() * (log_t - log_s)).sum(dim=1)


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """KL between independent Bernoulli laws, one per class, summed over classes: the KL of a sigmoid head.

    ``q = sigmoid(logits / T)``; ``KL = sum_c q_t log(q_t / q_s) + (1 - q_t) log((1 - q_t) / (1 - q_s))``, computed
    from the logits so that no probability is ever rounded to 0 or 1.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0, a number or a scalar tensor.

    Returns:
        (N,), float32 for low-precision input.

    Example:
        >>> import torch
        >>> bernoulli_kl(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, -2.0]]))
        tensor([0.6556])
    """
    check_same_shape(student, teacher, "bernoulli_kl")
    s, t = upcast(student) / temperature, upcast(teacher) / temperature
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(dim=1)


def divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0, law: Law = "categorical") -> Tensor:
    """The KL that fits the head: ``categorical_kl`` for softmax logits, ``bernoulli_kl`` for sigmoid logits.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0, a number or a scalar tensor.
        law: ``"categorical"`` or ``"bernoulli"``.

    Returns:
        (N,), not scaled by T^2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> divergence(torch.zeros(1, 2), logits), divergence(torch.zeros(1, 2), logits, law="bernoulli")
        (tensor([0.3278]), tensor([0.3278]))
    """
    if law == "categorical":
        return categorical_kl(student, teacher, temperature)
    if law == "bernoulli":
        return bernoulli_kl(student, teacher, temperature)
    raise KDBenchError(f"law={law!r} is unknown; {nearest(str(law), ('categorical', 'bernoulli'))}")
