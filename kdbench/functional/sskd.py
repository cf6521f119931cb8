"""Contrast between samples and their transformed views, and which of its predictions to transfer (SSKD)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import full_precision, safe_mean, unit, upcast


def contrast_similarities(transformed: Tensor, original: Tensor) -> Tensor:
    """Cosine similarity of every transformed sample to every original one.

    Xu et al., Knowledge Distillation Meets Self-Supervision (ECCV 2020).

    Args:
        transformed: (M, D).
        original: (B, D).

    Returns:
        (M, B), float32 for low-precision input.

    Example:
        >>> import torch
        >>> contrast_similarities(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.7071]])
    """
    transformed, original = (unit(upcast(x)) for x in (transformed, original))
    with full_precision(original):
        return transformed @ original.T


def contrast_loss(similarities: Tensor, origin: Tensor) -> Tensor:
    """Cross-entropy of finding the sample that each transformed one was made from.

    Xu et al. (ECCV 2020), without temperature as in the authors' code.

    Args:
        similarities: of :func:`contrast_similarities`, (M, B).
        origin: (M,), in 0 .. B - 1.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> contrast_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor(0.3133)
    """
    return safe_mean(F.cross_entropy(upcast(similarities), origin, reduction="none"))


def select_transfer(scores: Tensor, target: Tensor, keep: float) -> Tensor:
    """Chooses the predictions to transfer: all that are right, and of the wrong ones the share with the least error.

    Xu et al. (ECCV 2020), selective transfer: the error level of a prediction is the rank of the true class. A tie at
    the top counts as right; of wrong predictions of one level the first are chosen.

    Args:
        scores: of the teacher (N, C).
        target: true class (N,).
        keep: share of the wrong predictions, in 0 .. 1, rounded down.

    Returns:
        (N,) of 0 and 1, in the dtype of ``scores``.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(3, 3)
        >>> select_transfer(scores, torch.tensor([2, 0, 1]), 0.5)
        tensor([0., 1., 1.])
    """
    rank = (scores > scores.gather(1, target[:, None])).sum(dim=1)
    wrong = int((rank > 0).sum())
    chosen = rank.argsort(stable=True)[: len(rank) - wrong + int(wrong * keep)]
    return scores.new_zeros(len(rank)).index_fill(0, chosen, 1.0)


def contrast_transfer_loss(
    student: Tensor, teacher: Tensor, origin: Tensor, temperature: float = 0.5, keep: float = 0.75
) -> Tensor:
    """``T^2 KL`` between the contrast predictions of teacher and student, the mean over those worth transferring.

    Xu et al. (ECCV 2020), with the selection of :func:`select_transfer`.

    Args:
        student: similarities (M, B).
        teacher: similarities (M, B).
        origin: (M,), in 0 .. B - 1.
        temperature: > 0.
        keep: share of the teacher's wrong predictions, in 0 .. 1.

    Returns:
        A scalar, float32 for low-precision input; zero where nothing is transferred.

    Example:
        >>> import torch
        >>> contrast_transfer_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor(0.0820)
    """
    return kd_loss(student, teacher, temperature, weight=select_transfer(teacher, origin, keep))
