"""Channel-wise distillation: every channel of a map is a distribution over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def spatial_log_softmax(values: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Log of the softmax over the positions of each channel, ``log softmax_space(values / temperature)``.

    Args:
        values: (B, C, *space).
        temperature: > 0.
        mask: positions that count (B, *space); the others have no part, and a value that is finite and means nothing.

    Returns:
        (B, C, positions), float32 for low-precision input.

    Example:
        >>> spatial_log_softmax(torch.tensor([[[0.0, 0.0, 5.0]]]), mask=torch.tensor([[True, True, False]]))[..., :2]
        tensor([[[-0.6931, -0.6931]]])
    """
    flat = upcast(values).flatten(2) / temperature
    if mask is not None:
        flat = flat.masked_fill(~mask.flatten(1)[:, None], torch.finfo(flat.dtype).min / 2)
    return flat.log_softmax(2)


def channel_wise_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, mask: Tensor | None = None) -> Tensor:
    """Where each channel is active, ``T^2 * mean_{b, c} KL(softmax_space(t / T) || softmax_space(s / T))``.

    Shu, Liu, Gao, Yan & Shen, Channel-wise Knowledge Distillation for Dense Prediction (ICCV 2021), eq. 3 and 5.

    Args:
        student: (B, C, *space), e.g. maps of class scores or a feature.
        teacher: same shape.
        temperature: T > 0.
        mask: positions that count (B, *space), or None for all; samples without one have no part.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples or positions.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> channel_wise_loss(torch.zeros(1, 1, 2), torch.tensor([[[8.0, 0.0]]]), temperature=4.0)
        tensor(5.2450)
    """
    check_same_shape(student, teacher, "channel_wise_loss")
    log_s, log_t = (spatial_log_softmax(x, temperature, mask) for x in (student, teacher))
    divergence = (log_t.exp() * (log_t - log_s)).sum(2).flatten()
    weight = None if mask is None else mask.flatten(1).any(1).repeat_interleave(student.shape[1])
    return temperature**2 * weighted_mean(divergence, weight)
