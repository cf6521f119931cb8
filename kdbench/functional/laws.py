"""What divergences of whole laws share: log-probabilities of softmax and sigmoid heads in one form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.features import Law
from kdbench.functional.divergence import LOGITS
from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def log_laws(
    student: Tensor, teacher: Tensor, temperature: float | Tensor, law: Law, what: str
) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities of both heads, softened, over their last axis.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0.
        law: ``"categorical"`` for one law over C classes a row, ``"bernoulli"`` for C laws over yes and no.
        what: names the loss in error lines.

    Returns:
        Each (N, C), or (N, C, 2) of a sigmoid head; float32 for low-precision input.

    Raises:
        KDBenchError: shapes differ, or the law is unknown.

    Example:
        >>> log_laws(torch.zeros(1, 2), torch.zeros(1, 2), 1.0, "categorical", "example")[0].exp()
        tensor([[0.5000, 0.5000]])
    """
    check_same_shape(student, teacher, what)
    if law not in LOGITS:
        raise KDBenchError(f"{what}: law={law!r} is unknown; {nearest(str(law), LOGITS)}")
    s, t = upcast(student) / temperature, upcast(teacher) / temperature
    if law == "categorical":
        return F.log_softmax(s, -1), F.log_softmax(t, -1)
    return tuple(torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], -1) for z in (s, t))  # type: ignore[return-value]


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns ``KL(p || q)`` of laws over the last axis, summed over those of a row: ``(N, …)`` to ``(N,)``.

    Example:
        >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        tensor([0.1438])
    """
    return by_row(log_p.exp() * (log_p - log_q))


def mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Returns the log of ``share p + (1 - share) q`` for a share between 0 and 1, of any shape, without a rounded zero.

    Example:
        >>> mixture(torch.tensor([0.5]).log(), torch.tensor([0.1]).log(), 0.25).exp()
        tensor([0.2000])
    """
    if share in (0, 1):
        return log_p if share else log_q
    log_share = log_p.new_tensor([share, 1 - share]).log()
    return torch.logaddexp(log_p + log_share[0], log_q + log_share[1])


def by_row(values: Tensor) -> Tensor:
    """Sums ``(N, …)`` over all axes but the first, to ``(N,)``."""
    return values.flatten(1).sum(1)


def softened_mean(rows: Tensor, temperature: float | Tensor, weight: Tensor | None) -> Tensor:
    """Returns ``T^2`` times the mean of rows ``(N,)``, or their mean by weights ``(N,)``: a scalar."""
    return temperature**2 * weighted_mean(rows, weight)
