"""An interpolated lower bound of mutual information."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, full_precision, safe_mean, unit, upcast


def mutual_information_loss(
    student: Tensor, teacher: Tensor, alpha: float = 0.5, temperature: float = 0.1, baseline: Tensor | None = None
) -> Tensor:
    """Minus the bound ``I_a`` of the mutual information of x (student) and y (teacher), in nats.

    He, Shi, Mueller, Zha, Li & Karypis, Distiller (SustaiNLP 2021), after Poole, Ozair, van den
    Oord, Alemi & Tucker, On Variational Bounds of Mutual Information (ICML 2019), with the critic
    ``f(x, y) = cos(x, y) / temperature``:

        I_a = 1 + mean_i log(e^f(x_i, y_i) / (a m(y_i) + (1 - a) q(y_i)))
                - mean_j m'(y_j) / (a m'(y_j) + (1 - a) q(y_j))

    with ``m(y)`` the mean of ``e^f(x, y)`` over all x of the batch, and ``m'(y_j)`` over those that do not belong to
    ``y_j``: the second mean is over independent pairs. At a = 1 it is InfoNCE, at most log B; a smaller a has less bias
    and more variance.

    Args:
        student: what the critic sees of the student (B, D).
        teacher: what it sees of the teacher (B, D).
        alpha: a, above 0 and at most 1.
        temperature: above 0; divides the cosine.
        baseline: log q(y) of each sample (B,); None for q = 1.

    Returns:
        A scalar, float32 for low-precision input; zero for fewer than two samples, which tell nothing.

    Raises:
        KDBenchError: Shapes differ, or a number is out of range.

    Example:
        >>> x = torch.eye(4)
        >>> mutual_information_loss(x, x, alpha=1.0)
        tensor(-1.3862)
    """
    check_same_shape(student, teacher, "mutual_information_loss")
    if not 0 < alpha <= 1 or temperature <= 0:
        raise KDBenchError(
            f"mutual_information_loss: alpha={alpha:g} and temperature={temperature:g}, expected a number above 0 and "
            "at most 1, and one above 0"
        )
    count = len(student)
    if count < 2:
        return safe_mean(0 * (upcast(student) + upcast(teacher)))
    with full_precision(student):
        scores = unit(upcast(student)) @ unit(upcast(teacher)).T / temperature
    whole = scores.logsumexp(0) - math.log(count)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    others = scores.masked_fill(own, -torch.inf).logsumexp(0) - math.log(count - 1)
    log_q = torch.zeros_like(whole) if baseline is None else upcast(baseline)

    def mixed(log_m: Tensor) -> Tensor:
        if alpha == 1:
            return log_m
        return torch.logaddexp(log_m + math.log(alpha), log_q + math.log1p(-alpha))

    joint = scores.diagonal() - mixed(whole)
    apart = (others - mixed(others)).exp()
    return -safe_mean(1 + joint - apart)
