"""Masked generative distillation: the teacher's whole feature from a part of the student's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast


def random_mask(
    feature: Tensor,
    ratio: float,
    over: Literal["channels", "positions"] = "channels",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a mask of zeros and ones for each sample; each entry is zero with probability ``ratio``.

    Args:
        feature: (B, C, *space); gives shape, dtype and device.
        ratio: share that is masked, in [0, 1).
        over: ``channels`` masks whole channels, ``positions`` all channels of a cell.
        generator: on the CPU.

    Returns:
        (B, C, 1, …) or (B, 1, *space).

    Example:
        >>> random_mask(torch.zeros(2, 3, 4, 5), 0.0, "positions").shape
        torch.Size([2, 1, 4, 5])
    """
    batch, channels, *space = feature.shape
    shape = (batch, channels, *(1 for _ in space)) if over == "channels" else (batch, 1, *space)
    return (torch.rand(shape, generator=generator) >= ratio).to(feature)


def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the generated and the teacher's feature, summed over a sample, mean over samples.

    Yang et al., Masked Generative Distillation (ECCV 2022), ``sum_kij (T - G(f_align(S) M))^2``.

    Args:
        generated: (B, C, *space).
        teacher: feature of the same shape.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> mgd_loss(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(3.)
    """
    check_same_shape(generated, teacher, "mgd_loss")
    return (upcast(generated) - upcast(teacher)).square().sum() / max(generated.shape[0], 1)
