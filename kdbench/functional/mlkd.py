"""Multi-level logit distillation: single predictions, relations of samples and relations of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import (
    Faithful,
    check_faithful,
    check_same_shape,
    full_precision,
    safe_mean,
    upcast,
    weighted_mean,
)

#: Temperatures at which the release reads the weak view where it means the strong one, on CIFAR-100 and ImageNet alike.
WEAK_AGAIN = (2.0, 6.0)


class Levels(NamedTuple):
    """The losses of the three levels, each summed over temperatures and views."""

    instance: Tensor
    batch: Tensor
    classes: Tensor


def gram_loss(student: Tensor, teacher: Tensor, kept: Tensor | None = None) -> Tensor:
    """Distance between Gram matrices, ``||A_t A_t^T - A_s A_s^T||_F^2 / N``.

    Jin, Wang & Lin, Multi-Level Logit Distillation (CVPR 2023): with probabilities A (B, C) the relations of the
    samples of a batch, with their transpose those of the classes.

    Args:
        student: (N, M).
        teacher: (N, M).
        kept: how much each row of the matrices counts (N,); fully when None.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> gram_loss(torch.eye(2), torch.zeros(2, 2))
        tensor(1.)
    """
    check_same_shape(student, teacher, "gram_loss")
    student, teacher = upcast(student), upcast(teacher)
    with full_precision(student):
        rows = (teacher @ teacher.T - student @ student.T).square().sum(dim=1)
    return safe_mean(rows if kept is None else kept * rows)


def least_confident(confidence: Tensor, share: float) -> Tensor:
    """Returns 1 for the ``share`` of entries (N,) with the lowest confidence, ties included, and 0 for the others.

    Example:
        >>> least_confident(torch.tensor([0.9, 0.2, 0.4, 0.7]), 0.5)
        tensor([0., 1., 1., 0.])
    """
    if not len(confidence):
        return confidence
    return (confidence <= confidence.quantile(share)).to(confidence.dtype)


def mlkd_losses(
    weak: tuple[Tensor, Tensor],
    strong: tuple[Tensor, Tensor],
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    *,
    share: float = 0.5,
    faithful: Faithful = "code",
    weight: Tensor | None = None,
) -> Levels:
    """Distillation at three levels, at several temperatures, on two views of a batch.

    Jin, Wang & Lin (CVPR 2023). At each T, with ``p = softmax(z / T)`` (N, C):

    * instance ``T^2 * mean_n m_n KL(p_t || p_s)``,
    * batch ``||m (p_t p_t^T - p_s p_s^T)||^2 / N``, classes ``||k (p_t^T p_t - p_s^T p_s)||^2 / C``,

    where m (N,) keeps the rows and k (C,) the classes in which the teacher, at T = 1 on the weak view, is least
    confident. The two modes differ in the masks and in the views:

    * ``paper``: m and k as they are. Instance and classes add the strong view unmasked, batch adds it masked by m.
    * ``code``: what the release computes. Its masks multiply means, so that m and k are their own means. The strong
      view enters the instance level alone, where the temperatures of :data:`WEAK_AGAIN` read the weak view once more.

    Args:
        weak: student's and teacher's logits (N, C) of the weak view.
        strong: student's and teacher's logits (N, C) of the strong view, row by row the same samples.
        temperatures: at least one.
        share: of the rows and classes that the masks keep; 1 keeps all.
        faithful: ``"paper"`` or ``"code"``.
        weight: non-negative row weights (N,) of the instance level, normalised by their sum.

    Returns:
        Three scalars, float32 for low-precision input; zero for no rows.

    Example:
        >>> logits = torch.eye(3)
        >>> mlkd_losses((logits, logits), (logits, logits)).instance
        tensor(0.)
    """
    check_faithful(faithful)
    for name, pair in (("weak", weak), ("strong", strong)):
        check_same_shape(*pair, f"mlkd_losses, {name} view")
    confidence = F.softmax(upcast(weak[1]), dim=1)
    rows, classes = least_confident(confidence.amax(dim=1), share), least_confident(confidence.sum(dim=0), share)
    if faithful == "code":
        rows, classes = (safe_mean(mask).expand_as(mask) for mask in (rows, classes))
    everything = torch.ones_like(rows)
    again = WEAK_AGAIN if faithful == "code" else ()

    instance, batch, relations = [], [], []
    for t in temperatures:
        for (student, teacher), kept in ((weak, rows), (weak if t in again else strong, everything)):
            instance.append(t**2 * weighted_mean(kept * categorical_kl(student, teacher, t), weight))
        p_s, p_t = (F.softmax(upcast(logits) / t, dim=1) for logits in weak)
        batch.append(gram_loss(p_s, p_t, rows))
        relations.append(gram_loss(p_s.T, p_t.T, classes))
        if faithful == "paper":
            p_s, p_t = (F.softmax(upcast(logits) / t, dim=1) for logits in strong)
            batch.append(gram_loss(p_s, p_t, rows))
            relations.append(gram_loss(p_s.T, p_t.T))
    return Levels(*(torch.stack(values).sum() for values in (instance, batch, relations)))
