"""Double similarity: how attention changes between layers, and which classes are found in the same places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.cwd import spatial_log_softmax
from kdbench.functional.numerics import full_precision, safe_mean, unit, upcast
from kdbench.functional.pool import resize

_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def residual_attention(features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Differences between the attention maps of layers, ``unit(q_m - q_l)`` of each pair l < m.

    ``q`` is the mean square over channels, brought to ``size`` by linear interpolation and scaled to unit l2 norm. Two
    maps that are equal up to rounding have the difference zero.

    Args:
        features: (B, C_l, *space_l) each, one to three spatial axes, shallow to deep.
        size: of the maps that are compared.

    Returns:
        (B, pairs, positions), float32 for low-precision input.

    Example:
        >>> first, second = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> residual_attention([first, second], [2])
        tensor([[[-0.7071,  0.7071]]])
    """
    maps = []
    for feature in features:
        squares = upcast(feature).square().mean(1, keepdim=True)
        maps.append(unit(resize(squares, size).flatten(1)))
    rounding = 8 * torch.finfo(maps[0].dtype).eps
    return torch.stack([unit(deep - shallow, eps=rounding) for shallow, deep in combinations(maps, 2)], 1)


def pixel_similarity_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """How attention changes from layer to layer, the mean square of the difference of :func:`residual_attention`.

    Feng, Sun, Diao, Li & Gao, Double Similarity Distillation for Semantic Image Segmentation (IEEE TIP 2021), as Yang
    et al. (CIRKD, CVPR 2022) run it. Maps of several sizes are compared at the largest.

    Args:
        student: (B, C_l, *space_l) each, at least two, shallow to deep.
        teacher: (B, D_l, *size_l) each, as many, of any widths and sizes.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Raises:
        KDBenchError: the numbers of layers differ or are below two.

    Example:
        >>> first, second = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> pixel_similarity_loss([first, second], [second, first])
        tensor(2.0000)
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise KDBenchError(
            f"pixel_similarity_loss: found {len(student)} features of the student and {len(teacher)} of the teacher, "
            "expected as many, and at least two"
        )
    size = [max(axis) for axis in zip(*(f.shape[2:] for f in (*student, *teacher)), strict=True)]
    return safe_mean((residual_attention(student, size) - residual_attention(teacher, size)).square())


def category_correlation(scores: Tensor, temperature: float = 4.0, mask: Tensor | None = None) -> Tensor:
    """Which classes are found in the same places, ``G = P P^T`` with ``P = softmax_space(pool(scores) / T)``.

    Args:
        scores: (B, C, *space), one to three spatial axes; averaged over windows of two cells along each axis.
        temperature: T > 0.
        mask: positions that count (B, *space), or None for all.

    Returns:
        (B, C, C), float32 for low-precision input; zero for samples of which no position counts.

    Example:
        >>> category_correlation(torch.tensor([[[4.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]), temperature=1.0)
        tensor([[[0.9647, 0.5000],
                 [0.5000, 0.5000]]])
    """
    scores, axes = upcast(scores), scores.dim() - 2

    def pool(values: Tensor) -> Tensor:
        kernel = [min(2, cells) for cells in values.shape[2:]]
        return _POOL[axes](values, kernel, kernel, ceil_mode=True)

    if mask is None:
        pooled, counts = pool(scores), None
    else:
        share = pool(mask[:, None].to(scores.dtype))
        pooled = pool(torch.where(mask[:, None], scores, 0.0)) / torch.where(share > 0, share, 1.0)
        counts = (share > 0)[:, 0]
    found = spatial_log_softmax(pooled, temperature, counts).exp()
    if counts is not None:
        found = found * counts.flatten(1).any(1)[:, None, None]
    with full_precision(found):
        return found @ found.transpose(1, 2)


def category_similarity_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """Mean square of the difference of :func:`category_correlation`; Feng et al. (TIP 2021), as Yang et al. run it.

    Args:
        student: (B, C, *space_s).
        teacher: (B, C, *space_t).
        temperature: > 0.
        mask: positions that count (B, *space), or None for all; with one, both are of its size.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Raises:
        KDBenchError: the numbers of samples or classes differ.

    Example:
        >>> category_similarity_loss(torch.zeros(1, 2, 2), torch.tensor([[[8.0, 8.0], [8.0, 8.0]]]))
        tensor(0.)
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise KDBenchError(
            f"category_similarity_loss: the student has shape {tuple(student.shape)} and the teacher "
            f"{tuple(teacher.shape)}, expected (B, C, *space) with equal B and C"
        )
    made = [category_correlation(x, temperature, mask) for x in (student, teacher)]
    return safe_mean((made[0] - made[1]).square())
