"""Knowledge distillation of logits, with the standardisation of LSKD and the learned temperature of CTKD."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Law, ValueLaw
from kdbench.functional.divergence import VALUES, divergence
from kdbench.functional.numerics import spread, upcast, weighted_mean


def z_score(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-scores every row of logits (N, C): ``(z - mean(z)) / (std(z) + eps)``, C >= 2.

    Sun et al., Logit Standardization in Knowledge Distillation (CVPR 2024). ``std`` divides by C - 1 as the authors'
    code does; the other convention would only rescale the temperature by ``sqrt(C / (C - 1))``. A row which is constant
    up to rounding has the scores zero, and no gradient comes to it.

    Example:
        >>> z_score(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.0000,  0.0000,  1.0000]])
    """
    if logits.shape[1] < 2:
        raise KDBenchError(f"z_score: found {logits.shape[1]} class, expected at least 2; set standardize=False")
    centred, norm, varies = spread(upcast(logits))
    std = torch.where(varies, norm, 1.0) / (logits.shape[1] - 1) ** 0.5
    return torch.where(varies, centred / (std + eps), 0.0)


def std_rescale(logits: Tensor, dim: int = 1) -> Tensor:
    """Divides every row of logits by its standard deviation over the classes: a temperature of its own.

    Choi, Jeon, Shukla & Turaga, Understanding the Role of Mixup in Knowledge Distillation (WACV 2023), as in the
    authors' code: ``z / std(z)``, where ``std`` divides by C - 1 and the gradient goes through it. A softmax does not
    see what :func:`z_score` does beyond this. A row which is constant up to rounding becomes zero.

    Args:
        logits: any shape with a class axis of C >= 2, e.g. (N, C).
        dim: the class axis.

    Returns:
        same shape, float32 for low-precision input.

    Example:
        >>> std_rescale(torch.tensor([[1.0, 3.0, 5.0]]))
        tensor([[0.5000, 1.5000, 2.5000]])
    """
    classes = logits.shape[dim]
    if classes < 2:
        raise KDBenchError(f"std_rescale: found {classes} class, expected at least 2; set rescale=null")
    rows = upcast(logits).movedim(dim, -1)
    flat = rows.reshape(-1, classes)
    _, norm, varies = spread(flat)
    scaled = torch.where(varies, flat / (torch.where(varies, norm, 1.0) / (classes - 1) ** 0.5), 0.0)
    return scaled.view(rows.shape).movedim(-1, dim)


def adversarial_temperature(theta: Tensor, reversal: float = 1.0, low: float = 1.0, span: float = 20.0) -> Tensor:
    """Learned temperature ``T = low + span * sigmoid(theta)`` whose gradient with respect to theta is reversed.

    Li et al., Curriculum Temperature for Knowledge Distillation (AAAI 2023), global temperature. A step that lowers
    the loss moves theta to where the loss is higher, by ``reversal`` times the true gradient.

    Args:
        theta: a scalar.
        reversal: lambda >= 0; at 0 theta stays where it is.
        low: lowest temperature, > 0.
        span: width of the range of temperatures, > 0.

    Returns:
        T, of the same shape as ``theta``.

    Example:
        >>> adversarial_temperature(torch.tensor(0.0))
        tensor(11.)
    """
    fixed = theta.detach()
    return low + span * torch.sigmoid(fixed - reversal * (theta - fixed))


def cosine_ramp(progress: float, ramp: float) -> float:
    """Rises from 0 to 1 along a half cosine while ``progress`` goes from 0 to ``ramp``; 1 from there on.

    Example:
        >>> cosine_ramp(0.0, 0.1), round(cosine_ramp(0.05, 0.1), 4), cosine_ramp(0.2, 0.1)
        (0.0, 0.5, 1.0)
    """
    return 0.5 - 0.5 * math.cos(math.pi * progress / ramp) if progress < ramp else 1.0


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    law: Law | ValueLaw = "categorical",
    standardize: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Distillation loss ``T^2 * mean_n KL(p_t || p_s)`` at temperature T.

    Of predicted values it is the mean of :func:`~kdbench.functional.divergence.divergence` without a temperature.

    Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (2015), section 2: T^2 keeps the size of the
    gradient when T changes. (Their soft-target cross-entropy differs by the teacher's entropy, a constant.)

    Args:
        student: logits, or predicted values, (N, C).
        teacher: likewise (N, C).
        temperature: T > 0, a number or a scalar tensor; of logits alone.
        law: ``"categorical"`` for a softmax head, ``"bernoulli"`` for a sigmoid head (a sum over classes), ``"plain"``
            or ``"gaussian"`` for predicted values.
        standardize: z-score both logits first (LSKD). Only for the categorical law, which alone ignores a shift.
        weight: non-negative row weights (N,), normalised by their sum: the loss is a weighted mean over rows.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows or all-zero weights.

    Raises:
        KDBenchError: shapes differ, the law is unknown, or ``standardize`` meets another head than a softmax.

    Example:
        >>> kd_loss(torch.zeros(1, 2), torch.tensor([[8.0, 0.0]]), temperature=4.0)
        tensor(5.2450)
    """
    if standardize:
        if law != "categorical":
            raise KDBenchError(
                f"standardize=True was given with law={law!r}, expected 'categorical': only a softmax is "
                "invariant to a shift of the logits; set standardize=False"
            )
        student, teacher = z_score(student), z_score(teacher)
    loss = weighted_mean(divergence(student, teacher, temperature, law), weight)
    return loss if law in VALUES else temperature**2 * loss
