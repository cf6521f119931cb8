"""Pivotal-position distillation: class scores of a dense detector, where the teacher sees something.

Yang, Shi, Ding, Wang & Qi, Towards Efficient 3D Object Detection with Knowledge Distillation (NeurIPS 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Law
from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def pivotal_positions(
    scores: Tensor, threshold: float = 0.0, top: int | None = None, peaks: Tensor | None = None, soft: bool = False
) -> Tensor:
    """How pivotal each position is by what the teacher says there: a product of those of these factors that are asked.

    Confidence: whether its best score is above ``threshold``. Rank: whether one of its scores is among the ``top`` best
    of the sample. Gaussian: ``peaks``. Soft: its best score itself.

    Args:
        scores: of the teacher, from 0 to 1 (B, P, C).
        threshold: of confidence.
        top: best scores of a sample that count, over positions and classes; None for all.
        peaks: from 0 to 1 (B, P): one where an object's centre is, falling around it; None for one everywhere.
        soft: whether the best score is a factor.

    Returns:
        (B, P), from 0 to 1, float32 for low-precision input.

    Raises:
        KDBenchError: ``peaks`` are not of these positions.

    Example:
        >>> scores = torch.tensor([[[0.1, 0.2], [0.9, 0.3], [0.4, 0.8]]])
        >>> pivotal_positions(scores, threshold=0.5), pivotal_positions(scores, top=1, soft=True)
        (tensor([[0., 1., 1.]]), tensor([[0.0000, 0.9000, 0.0000]]))
    """
    scores = upcast(scores)
    batch, positions, classes = scores.shape
    if peaks is not None and peaks.shape != (batch, positions):
        raise KDBenchError(
            f"pivotal_positions: peaks of shape {tuple(peaks.shape)} for scores of shape {tuple(scores.shape)}, "
            f"expected {(batch, positions)}"
        )
    if not scores.numel():
        return scores.new_zeros(batch, positions)
    best = scores.amax(2)
    weight = (best > threshold).to(scores.dtype)
    if top is not None:
        chosen = scores.flatten(1).topk(min(top, positions * classes), dim=1).indices // classes
        weight = weight * torch.zeros_like(weight).scatter_(1, chosen, 1.0)
    if peaks is not None:
        weight = weight * peaks.to(weight)
    return weight * best if soft else weight


def pivotal_logit_loss(student: Tensor, teacher: Tensor, weight: Tensor, law: Law = "bernoulli") -> Tensor:
    """Squared distance of class probabilities, summed over classes: ``sum w |p_s - p_t|^2 / sum w``.

    Args:
        student: logits (N, C).
        teacher: Same shape.
        weight: how pivotal each row is, not negative (N,).
        law: of the head: sigmoids (``bernoulli``) or a softmax (``categorical``).

    Returns:
        A scalar, float32 for low-precision input; zero for no rows or weights.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> pivotal_logit_loss(torch.zeros(2, 1), torch.tensor([[9.0], [0.0]]), torch.tensor([1.0, 3.0]))
        tensor(0.0625)
    """
    check_same_shape(student, teacher, "pivotal_logit_loss")
    first, second = (probabilities(x, law) for x in (student, teacher))
    return weighted_mean((first - second).square().sum(1), weight)


def probabilities(logits: Tensor, law: Law) -> Tensor:
    """Class probabilities of logits (..., C), float32 for low-precision input.

    Example:
        >>> probabilities(torch.zeros(2), "bernoulli"), probabilities(torch.zeros(2), "categorical")
        (tensor([0.5000, 0.5000]), tensor([0.5000, 0.5000]))
    """
    return upcast(logits).sigmoid() if law == "bernoulli" else upcast(logits).softmax(-1)
