"""Mixtures of the samples of a batch: how much of each, where, and what their targets become."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError


def mix(values: Tensor, order: Tensor, own: Tensor) -> Tensor:
    """Mixes each sample with another one: ``own * x_i + (1 - own) * x_order(i)``.

    Zhang, Cisse, Dauphin & Lopez-Paz, mixup (ICLR 2018), eq. 1; with ``own`` of 0 and 1 by position CutMix (Yun et al.,
    ICCV 2019), eq. 1.

    Args:
        values: (B, …), floating point.
        order: partner of each sample (B,) int64.
        own: share of the sample itself (B,), or of each position (B, *size) of values (B, C, *size).

    Returns:
        (B, …).

    Raises:
        KDBenchError: ``own`` fits neither the batch nor the positions.

    Example:
        >>> mix(torch.tensor([[1.0], [3.0]]), torch.tensor([1, 0]), torch.tensor([1.0, 0.25]))
        tensor([[1.0000],
                [1.5000]])
    """
    if own.shape == values.shape[:1]:
        own = own.view(-1, *(1 for _ in values.shape[1:]))
    elif own.shape == (*values.shape[:1], *values.shape[2:]):
        own = own[:, None]
    else:
        raise KDBenchError(
            f"mix: found shares {tuple(own.shape)} of values {tuple(values.shape)}, expected one a sample or a position"
        )
    own = own.to(values.dtype)
    return own * values + (1 - own) * values[order]


def mean_share(own: Tensor) -> Tensor:
    """Returns the share of each sample in its mixture (B,), from shares by sample (B,) or by position (B, *size).

    Example:
        >>> mean_share(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        tensor([0.2500])
    """
    return own.flatten(1).mean(1) if own.dim() > 1 else own


def distributions(targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Returns classes as distributions, and which of them are known.

    Args:
        targets: classes (B, *size) int64, negative or at least ``classes`` where unknown; or distributions
            (B, C, *size), zero where unknown.
        classes: C.

    Returns:
        Distributions (B, C, *size), zero where unknown; known ones (B, *size) bool.

    Example:
        >>> distributions(torch.tensor([1, -1]), 2)
        (tensor([[0., 1.],
                [0., 0.]]), tensor([ True, False]))
    """
    if targets.is_floating_point():
        return targets, targets.sum(1) > 0
    known = (targets >= 0) & (targets < classes)
    each = F.one_hot(torch.where(known, targets, 0), classes).movedim(-1, 1).float()
    return each * known[:, None], known


def known_mixture(known: Tensor, order: Tensor, own: Tensor) -> Tensor:
    """Says which mixtures have a known target: those of whose parts with a share all are known.

    Args:
        known: (B, *size) bool.
        order: partner of each sample (B,) int64.
        own: share of the sample itself, (B,) or of the shape of ``known``.

    Returns:
        (B, *size) bool.

    Example:
        >>> known_mixture(torch.tensor([True, False]), torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
        tensor([ True, False])
    """
    own = own.view(*own.shape, *(1 for _ in known.shape[own.dim() :]))
    return (known | (own == 0)) & (known[order] | (own == 1))


def box_masks(size: Sequence[int], own: Tensor, centre: Tensor) -> Tensor:
    """Boxes of CutMix, zero inside and one outside: of each side ``sqrt(1 - own)``, cut off at the border.

    Yun, Han, Oh, Chun, Choe & Yoo, CutMix (ICCV 2019), section 3.1, eq. 2. Along one axis (a signal, an image of one
    row) the side is ``1 - own``: what is cut out has that share of the sample, as an image's box has.

    Args:
        size: lengths of the axes of a sample.
        own: share of each sample that is its own (B,), before the box is cut off.
        centre: of each box (B, axes), as shares of the axes from 0 to 1.

    Returns:
        (B, *size) float.

    Example:
        >>> box_masks((1, 4), torch.tensor([0.5]), torch.tensor([[0.5, 0.5]]))
        tensor([[[1., 0., 0., 1.]]])
    """
    long = [n > 1 for n in size]
    share = (1 - own).clamp(0, 1) ** (1 / max(1, sum(long)))
    inside = torch.ones(len(own), *size, dtype=torch.bool, device=own.device)
    for axis, length in enumerate(size):
        if not long[axis]:
            continue
        side, middle = (share * length).floor(), (centre[:, axis] * length).floor()
        low, high = (middle - (side / 2).floor())[:, None], (middle + (side - (side / 2).floor()))[:, None]
        place = torch.arange(length, device=own.device)
        shape = [len(own), *(length if other == axis else 1 for other in range(len(size)))]
        inside &= ((place >= low) & (place < high)).view(shape)
    return (~inside).to(own.dtype)


def spectral_saliency(images: Tensor, blur: float = 2.5) -> Tensor:
    """Saliency of images by the spectral residual: what their amplitude spectrum has beyond its own local mean.

    Hou & Zhang, Saliency Detection: A Spectral Residual Approach (CVPR 2007), eqs. 8 to 11: the residual
    ``R = log A - h * log A`` with h the mean over 3 x 3 frequencies, then ``|F^-1(exp(R + i P))|^2`` smoothed by a
    Gaussian.

    Args:
        images: (B, C, H, W).
        blur: standard deviation of the Gaussian, positions.

    Returns:
        (B, H, W), non-negative, at most 1 in each image.

    Example:
        >>> dot = torch.zeros(1, 1, 16, 16)
        >>> dot[..., 4, 11] = 1
        >>> divmod(int(spectral_saliency(dot, blur=1.0).argmax()), 16)
        (4, 11)
    """
    grey = images.float().mean(1)
    spectrum = torch.fft.fft2(grey)
    log = spectrum.abs().clamp(min=1e-8).log()
    local = F.avg_pool2d(F.pad(log[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    back = torch.fft.ifft2(torch.polar((log - local).exp(), spectrum.angle())).abs().square()
    smooth = back
    for axis in (1, 2):
        reach = max(1, min(round(3 * blur), back.shape[axis] - 1))
        place = torch.arange(-reach, reach + 1, device=back.device, dtype=back.dtype)
        kernel = (-0.5 * (place / blur).square()).exp()
        moved = smooth.movedim(axis, -1)
        padded = F.pad(moved.flatten(0, 1)[:, None], (reach, reach), mode="replicate")
        smooth = F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].view_as(moved).movedim(-1, axis)
    return smooth / smooth.amax((1, 2), keepdim=True).clamp(min=1e-12)
