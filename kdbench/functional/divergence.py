"""Divergences between a teacher's and a student's predictions, per row."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.features import Law, ValueLaw
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


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of plain predicted values (N, D), summed over the values of each row.

    Returns:
        (N,), float32 for low-precision input.

    Example:
        >>> import torch
        >>> squared_error(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]))
        tensor([10.])
    """
    check_same_shape(student, teacher, "squared_error")
    return (upcast(student) - upcast(teacher)).square().sum(dim=1)


def gaussian_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(N_teacher || N_student) between independent normal laws, one per predicted value, summed over the values.

    ``KL = sum_d 1/2 (log v_s - log v_t + (v_t + (m_t - m_s)^2) / v_s - 1)`` with means m and variances v.

    Args:
        student: (N, 2 D): D means, then D log-variances.
        teacher: (N, 2 D).

    Returns:
        (N,), float32 for low-precision input.

    Raises:
        KDBenchError: shapes differ, or a row does not hold as many means as log-variances.

    Example:
        >>> import torch
        >>> gaussian_kl(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
        tensor([2.])
    """
    check_same_shape(student, teacher, "gaussian_kl")
    if student.shape[1] % 2:
        raise KDBenchError(
            f"gaussian_kl: found {student.shape[1]} numbers a row, expected D means, then D log-variances; "
            "set law='plain' for values without a variance"
        )
    (mean_s, log_s), (mean_t, log_t) = (upcast(x).chunk(2, dim=1) for x in (student, teacher))
    gap = log_t - log_s
    return 0.5 * (gap.exp() - 1 - gap + (mean_t - mean_s).square() * (-log_s).exp()).sum(dim=1)


def divergence(
    student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0, law: Law | ValueLaw = "categorical"
) -> Tensor:
    """The divergence that fits the head.

    ``categorical_kl`` for softmax logits, ``bernoulli_kl`` for sigmoid logits, ``gaussian_kl`` for means and
    log-variances, ``squared_error`` for plain values: up to a factor, the KL of normal laws of one fixed variance.

    Args:
        student: predictions (N, C).
        teacher: predictions (N, C).
        temperature: T > 0, a number or a scalar tensor. Of logits alone; predicted values have none.
        law: ``"categorical"``, ``"bernoulli"``, ``"gaussian"`` or ``"plain"``.

    Returns:
        (N,), not scaled by T^2.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> divergence(torch.zeros(1, 2), logits), divergence(torch.zeros(1, 2), logits, law="bernoulli")
        (tensor([0.3278]), tensor([0.3278]))
    """
    if law in LOGITS:
        return LOGITS[law](student, teacher, temperature)
    if law in VALUES:
        return VALUES[law](student, teacher)
    raise KDBenchError(f"law={law!r} is unknown; {nearest(str(law), (*LOGITS, *VALUES))}")


#: Divergence of logits by their law.
LOGITS: dict[str, Callable[[Tensor, Tensor, float | Tensor], Tensor]] = {
    "categorical": categorical_kl,
    "bernoulli": bernoulli_kl,
}
#: Divergence of predicted values by their law.
VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": squared_error, "gaussian": gaussian_kl}
