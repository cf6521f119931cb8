"""Focal and global distillation: where objects are and where the teacher looks decides how much a cell counts.

Yang, Li, Jiang, Gong, Yuan, Zhao & Yuan, Focal and Global Knowledge Distillation for Detectors (CVPR 2022). The
relation of cells to a global context is compared by :func:`~kdbench.functional.mgd.mgd_loss`, a squared distance too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast


def focal_masks(boxes: Tensor, labels: Tensor, size: Sequence[int], stride: Sequence[float]) -> tuple[Tensor, Tensor]:
    """How much each cell of a grid counts as foreground and as background, so that objects of all sizes weigh the same.

    A cell of a box counts ``1 / (H W)``, H and W being the cells that the box covers; of several boxes the smallest
    decides. The others count one over their number. As in the authors' code a box covers the cells from the floor of
    its first edge to the ceiling of its last one, both included.

    Args:
        boxes: left, top, right, bottom in input units (B, M, 4).
        labels: integers (B, M), negative where there is no box.
        size: height and width of the grid.
        stride: input units per cell, down and across.

    Returns:
        foreground (B, H, W) and background (B, H, W).

    Example:
        >>> focal_masks(torch.tensor([[[0.0, 0.0, 4.0, 1.0]]]), torch.tensor([[2]]), (2, 4), (8, 4))
        (tensor([[[0.2500, 0.2500, 0.0000, 0.0000],
                 [0.2500, 0.2500, 0.0000, 0.0000]]]), tensor([[[0.0000, 0.0000, 0.2500, 0.2500],
                 [0.0000, 0.0000, 0.2500, 0.2500]]]))
    """
    boxes, labels = F.pad(upcast(boxes), (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)  # images without boxes
    cells = boxes / boxes.new_tensor([stride[1], stride[0]] * 2)
    first, last = cells[..., :2].floor(), cells[..., 2:].ceil()
    across, down = (
        (at >= first[..., i, None]) & (at <= last[..., i, None])
        for i, at in enumerate(torch.arange(n, device=boxes.device) for n in (size[1], size[0]))
    )
    inside = down[..., :, None] & across[..., None, :] & (labels >= 0)[..., None, None]
    share = 1 / (last - first + 1).prod(-1)
    foreground = torch.where(inside, share[..., None, None], 0.0).amax(1)
    background = (foreground == 0).to(foreground)
    return foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)


def focal_attention(feature: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """Where and in which channels a feature is active.

    ``A^S = H W softmax_space(mean_c |F| / T)`` and ``A^C = C softmax_c(mean_space |F| / T)``: one on average.

    Args:
        feature: (B, C, *space).
        temperature: T > 0.

    Returns:
        of positions (B, *space) and of channels (B, C), float32 for low-precision input.

    Example:
        >>> focal_attention(torch.zeros(1, 2, 3))
        (tensor([[1., 1., 1.]]), tensor([[1., 1.]]))
    """
    size = upcast(feature).abs().flatten(2)
    spatial = size.shape[2] * (size.mean(1) / temperature).softmax(1)
    channel = size.shape[1] * (size.mean(2) / temperature).softmax(1)
    return spatial.view(-1, *feature.shape[2:]), channel


def focal_feature_losses(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, temperature: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Squared distances weighed by masks and by where the teacher looks: ``sum M A^S_t A^C_t (t - s)^2``.

    Args:
        student: (B, C, *space).
        teacher: Same shape.
        foreground: mask of objects (B, *space), of :func:`focal_masks`.
        background: mask of the rest (B, *space).
        temperature: of the teacher's attention, T > 0.

    Returns:
        Two scalars, of foreground and background: summed over a sample, mean over samples; float32 for low-precision
        input.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> student, teacher, mask = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3.0), torch.tensor([[0.5, 0.0]])
        >>> focal_feature_losses(student, teacher, mask, 1 - mask)
        (tensor(9.), tensor(27.))
    """
    check_same_shape(student, teacher, "focal_feature_losses")
    spatial, channel = focal_attention(teacher, temperature)
    squared = (upcast(student) - upcast(teacher)).square().flatten(2)
    by_cell = spatial.flatten(1) * (channel[:, :, None] * squared).sum(1)
    of_foreground, of_background = ((mask.flatten(1) * by_cell).sum() for mask in (foreground, background))
    return of_foreground / max(len(student), 1), of_background / max(len(student), 1)


def focal_attention_loss(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> Tensor:
    """Absolute distance of both attentions, summed over positions and over channels, mean over samples.

    Args:
        student: (B, C, *space).
        teacher: Same shape.
        temperature: T > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> focal_attention_loss(torch.zeros(1, 1, 2), torch.tensor([[[8.0, 0.0]]]))
        tensor(2.0000)
    """
    check_same_shape(student, teacher, "focal_attention_loss")
    pairs = zip(focal_attention(student, temperature), focal_attention(teacher, temperature), strict=True)
    distances = [(s - t).abs().sum() for s, t in pairs]
    return (distances[0] + distances[1]) / max(len(student), 1)
