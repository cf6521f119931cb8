"""Soft targets that are the softer, the more private a word is."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def private_loss(
    student: Tensor, teacher: Tensor, temperature: Tensor, noise: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """``mean_n T_n^2 KL(q_n || softmax(s_n / T_n))``, ``q_n = (softmax(t_n / T_n) + noise_n) / (1 + sum noise_n)``.

    Li, Wu, Dong, Wu, Bian & Xiong, Swing Distillation (2022): a temperature and noise for each word.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T of each row (N,), above 0.
        noise: what is added to the target's probabilities (N, C), not negative; None for nothing.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> private_loss(torch.zeros(1, 2), torch.tensor([[8.0, 0.0]]), torch.tensor([4.0]))
        tensor(5.2450)
    """
    check_same_shape(student, teacher, "private_loss")
    rows = upcast(temperature)[:, None]
    log_s = (upcast(student) / rows).log_softmax(1)
    target = (upcast(teacher) / rows).softmax(1)
    if noise is not None:
        target = target + noise
        target = target / target.sum(1, keepdim=True)
    apart = (torch.xlogy(target, target) - target * log_s).sum(1)
    return weighted_mean(rows[:, 0].square() * apart, weight)
