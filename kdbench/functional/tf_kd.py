"""Distillation without a stronger teacher: self-training and a teacher made by hand (Tf-KD)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.divergence import categorical_kl
from kdbench.functional.kd import kd_loss
from kdbench.functional.numerics import Faithful, check_faithful, weighted_mean


def virtual_teacher(
    labels: Tensor, classes: int, correct_prob: float = 0.99, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Probabilities (N, classes) of a teacher that is always right: ``correct_prob`` on the true class, rest even.

    Yuan et al. (CVPR 2020), eq. 8.

    Example:
        >>> virtual_teacher(torch.tensor([1]), 3, correct_prob=0.9)
        tensor([[0.0500, 0.9000, 0.0500]])
    """
    rest = (1 - correct_prob) / (classes - 1)
    teacher = torch.full((len(labels), classes), rest, dtype=dtype, device=labels.device)
    return teacher.scatter(1, labels[:, None], correct_prob)


def self_training_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 20.0,
    *,
    faithful: Faithful = "paper",
    weight: Tensor | None = None,
) -> Tensor:
    """Divergence of the student from its own earlier self, Tf-KD_self.

    Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization (CVPR 2020), eq. 7.

    * ``paper``: ``T^2 * mean_n KL(p_t || p_s)`` at temperature T (the equation leaves the T^2 out).
    * ``code``: divided by the number of classes, because the authors' code averages over all elements.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0.
        faithful: ``"paper"`` or ``"code"``.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> self_training_loss(torch.zeros(1, 2), torch.tensor([[8.0, 0.0]]), 4.0, faithful="code")
        tensor(2.6225)
    """
    check_faithful(faithful)
    loss = kd_loss(student, teacher, temperature, weight=weight)
    return loss / student.shape[1] if faithful == "code" else loss


def virtual_teacher_loss(
    student: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    correct_prob: float = 0.99,
    *,
    faithful: Faithful = "paper",
    weight: Tensor | None = None,
) -> Tensor:
    """Divergence from a teacher made by hand, Tf-KD_reg.

    Yuan et al. (CVPR 2020), eqs. 8 and 9, with ``p`` of :func:`virtual_teacher`.

    * ``paper``: ``T^2 * mean_n KL(p_T || p_s)``, both softened: ``p_T = softmax(log(p) / T)``, which gives the bars of
      the paper's figure 3 (the equation leaves the T^2 out).
    * ``code``: ``mean_n KL(softmax(p / T) || p_s) / C``: the probabilities themselves pass through the softmax, so that
      the target is all but uniform, and the student is not softened.

    Args:
        student: logits (N, C), C >= 2.
        labels: true classes (N,).
        temperature: T > 0.
        correct_prob: probability of the true class, in (0, 1).
        faithful: ``"paper"`` or ``"code"``.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> virtual_teacher_loss(torch.zeros(1, 2), torch.tensor([0]), 1.0)
        tensor(0.6371)
    """
    check_faithful(faithful)
    teacher = virtual_teacher(labels, student.shape[1], correct_prob, torch.promote_types(student.dtype, torch.float32))
    if faithful == "code":
        return weighted_mean(categorical_kl(student, teacher / temperature), weight) / student.shape[1]
    return kd_loss(student, teacher.log(), temperature, weight=weight)
