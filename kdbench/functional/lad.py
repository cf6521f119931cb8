"""Label assistance: a code for the class of each position, as a further channel of a teacher's input."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.cwd import channel_wise_loss


def class_codes(classes: int) -> Tensor:
    """Fixed codes of C classes and of what has none, evenly spaced about zero: ``v_k = (k - n / 2) / (n / 2 - 1)``.

    Qiu, Chen, Li, Wan, Xue & Pu, Make a Strong Teacher with Label Assistance (ECCV 2024), as in the authors' code,
    where ``n = C + 1`` is 22.

    Returns:
        (C + 1,), the last one of positions that do not count.

    Example:
        >>> class_codes(3)
        tensor([-2., -1.,  0.,  1.])
    """
    n = classes + 1
    return (torch.arange(n) - n / 2) / max(n / 2 - 1, 1.0)


def label_channel(labels: Tensor, codes: Tensor, noise: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Channel that says which positions are of one class, ``l(p) = scale * (v_{y(p)} + e(p))``.

    Args:
        labels: class of each position (B, *size), -1 where it does not count.
        codes: v of each sample's classes (B, C + 1), the last one of positions that do not count.
        noise: e, of the shape of ``labels`` (B, *size), or None.
        scale: brings the channel to the size of the others.

    Returns:
        (B, 1, *size).

    Example:
        >>> label_channel(torch.tensor([[0, 1, -1]]), torch.tensor([[0.5, -0.5, 2.0]]), scale=2.0)
        tensor([[[ 1., -1.,  4.]]])
    """
    index = torch.where(labels < 0, codes.shape[1] - 1, labels)
    channel = codes.gather(1, index.flatten(1)).view(labels.shape)
    return scale * (channel if noise is None else channel + noise)[:, None]


def path_consistency_loss(
    first: Tensor, second: Tensor, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """How far two answers to one image under two codes are apart, ``CWD(first, second) + CWD(second, first)``.

    Qiu et al. (ECCV 2024), as in the authors' code: each is once the fixed target of the other, by
    :func:`~kdbench.functional.cwd.channel_wise_loss`.

    Args:
        first: class scores (B, C, *space).
        second: same shape.
        temperature: > 0.
        mask: positions that count (B, *space), or None for all.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Example:
        >>> path_consistency_loss(torch.zeros(1, 1, 2), torch.tensor([[[8.0, 0.0]]]))
        tensor(12.1855)
    """
    there = channel_wise_loss(first, second.detach(), temperature, mask)
    return there + channel_wise_loss(second, first.detach(), temperature, mask)
