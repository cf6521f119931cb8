"""A teacher that begins as the student and becomes the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.features import Law
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import check_same_shape, upcast


def interpolated_loss(
    student: Tensor,
    teacher: Tensor,
    share: float | Tensor,
    temperature: float = 1.0,
    *,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n KL(p_i || p_s)`` to the law of the logits ``(1 - share) z_s + share z_t``, z_s without gradient.

    Shing, Misaki, Bao, Yokoi & Akiba, TAID (ICLR 2025).

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        share: t of the teacher, from 0 to 1.
        temperature: T > 0.
        law: ``"categorical"``, or ``"bernoulli"`` (a sum over classes).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: shapes differ, or the law is unknown.

    Example:
        >>> z = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> interpolated_loss(*z, 1.0), interpolated_loss(*z, 0.5), interpolated_loss(*z, 0.0)
        (tensor(0.3278), tensor(0.1109), tensor(0.))
    """
    check_same_shape(student, teacher, "interpolated_loss")
    s, t = upcast(student).detach(), upcast(teacher)
    between = torch.lerp(s, t, torch.as_tensor(share, dtype=t.dtype, device=t.device))
    return kd_loss(student, between, temperature, law=law, weight=weight)


def next_share(
    share: Tensor,
    momentum: Tensor,
    loss: Tensor,
    last: Tensor,
    progress: float,
    start: float = 0.4,
    end: float = 1.0,
    alpha: float = 5e-4,
    decay: float = 0.99,
) -> tuple[Tensor, Tensor]:
    """Moves the share of the teacher on, the faster the more the loss falls; it is never behind a straight line.

    TAID, as in the authors' code: ``m <- decay m + (1 - decay) (last - loss) / last``, then
    ``t <- min(end, max(start + (end - start) progress, t + alpha sigmoid(m) (1 - t)))``. Before there is a last loss
    (nan) the share stays on the line.

    Args:
        share: t, a scalar ().
        momentum: m, a scalar ().
        loss: of this step, a scalar ().
        last: of the step before, a scalar (), nan at the first.
        progress: share of training that is done.
        start: t of the line at the beginning.
        end: t of the line at the end.
        alpha: how fast t moves on.
        decay: of m.

    Returns:
        The next t and m, two scalars.

    Example:
        >>> values = (torch.tensor(x) for x in (0.4, 0.0, 1.0, 2.0))
        >>> next_share(*values, progress=0.0, alpha=0.1, decay=0.0)
        (tensor(0.4373), tensor(0.5000))
    """
    line = share.new_tensor(start + (end - start) * progress)
    known = torch.isfinite(last)
    fallen = torch.where(known, (last - loss) / (last + torch.finfo(last.dtype).eps), torch.zeros_like(last))
    m = torch.where(known, decay * momentum + (1 - decay) * fallen, momentum)
    moved = torch.where(known, share + alpha * torch.sigmoid(m) * (1 - share), share)
    return torch.maximum(line, moved).clamp(max=end), m
