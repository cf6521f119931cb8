"""Colours of images: an affine change by channel, and how far it takes the colours of an image from what they were."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, full_precision, upcast


def color_affine(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scales and shifts every channel of images, ``(1 + a_c) p + b_c``, kept in 0 to 1.

    Args:
        pixels: (B, C, H, W), from 0 to 1.
        scale: a of each channel (B, C); 0 leaves it as it is.
        shift: b of each channel (B, C).

    Returns:
        (B, C, H, W).

    Example:
        >>> color_affine(torch.tensor([[[[0.25, 0.75]]]]), torch.tensor([[1.0]]), torch.tensor([[0.125]]))
        tensor([[[[0.6250, 1.0000]]]])
    """
    return (pixels * (1 + scale[..., None, None]) + shift[..., None, None]).clamp(0, 1)


def sliced_wasserstein(first: Tensor, second: Tensor, directions: Tensor) -> Tensor:
    """How far the colours of two images are apart, the mean of squared distances along directions of colour space.

    Suzuki, TeachAugment (CVPR 2022), section 4: the squared sliced 2-Wasserstein distance between the colours of an
    image and of its augmentation keeps the latter in bounds. Along a direction the distance of two sets of as many
    colours is that of the sorted ones.

    Args:
        first: (B, C, H, W).
        second: same shape.
        directions: (D, C) of any length above 0, which is made 1.

    Returns:
        A scalar, float32 for low-precision input; zero for no images.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> sliced_wasserstein(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1))
        tensor(5.)
    """
    check_same_shape(first, second, "sliced_wasserstein")
    unit = torch.nn.functional.normalize(upcast(directions), dim=1).to(first.device)
    with full_precision(first):
        one, other = (
            torch.einsum("dc,bcn->bdn", unit, upcast(x).flatten(2)).sort(dim=2).values for x in (first, second)
        )
    return (one - other).square().sum() / max(one.numel(), 1)
