"""Fine-grained feature imitation: cells whose anchors come near to an object.

Wang, Yuan, Zhang & Feng, Distilling Object Detectors with Fine-grained Feature Imitation (CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from kdbench.base.collectives import normalizer
from kdbench.functional.numerics import check_same_shape, upcast


def imitated_anchors(boxes: Tensor, labels: Tensor, anchors: Tensor, share: float = 0.5) -> Tensor:
    """Anchors that overlap a box more than ``share`` of what the best anchor does, for any box of the image.

    Args:
        boxes: left, top, right, bottom (B, M, 4).
        labels: integers (B, M), negative where there is no box.
        anchors: (A, 4) likewise.
        share: psi, from 0 to 1. At 0 all anchors that touch a box are in, at 1 none.

    Returns:
        bool (B, A).

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 0.0, 5.0, 4.0], [9.0, 0.0, 13.0, 4.0]])
        >>> imitated_anchors(anchors[None, :1], torch.tensor([[1]]), anchors)
        tensor([[ True,  True, False]])
    """
    (batch, count), rows = labels.shape, len(anchors)
    if not batch * count * rows:
        return torch.zeros(batch, rows, dtype=torch.bool, device=anchors.device)
    overlap = box_iou(upcast(boxes).flatten(0, 1), upcast(anchors))
    chosen = (overlap > share * overlap.amax(1, keepdim=True)) & (labels.flatten() >= 0)[:, None]
    return chosen.view(batch, count, rows).any(1)


def imitation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], cells: Sequence[Tensor]) -> Tensor:
    """Squared distance in the chosen cells of all levels, summed over channels, over twice their number.

    ``1 / (2 N) sum_l sum_ij I_ij sum_c (s_ijc - t_ijc)^2``, N being the cells that are chosen in the batch.

    Args:
        student: levels (B, C, *space).
        teacher: levels of the same shapes.
        cells: which are chosen, of each level, bool (B, *space).

    Returns:
        A scalar, float32 for low-precision input; zero where no cell is chosen.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> imitation_loss([torch.zeros(1, 2, 2)], [torch.full((1, 2, 2), 3.0)], [torch.tensor([[True, False]])])
        tensor(9.)
    """
    sums, chosen = [], []
    for s, t, mask in zip(student, teacher, cells, strict=True):
        check_same_shape(s, t, "imitation_loss")
        squared = (upcast(s) - upcast(t)).square().sum(1)
        sums.append((mask.to(squared) * squared).sum())
        chosen.append(mask.sum())
    return torch.stack(sums).sum() / (2 * normalizer(torch.stack(chosen).sum().to(sums[0].dtype)))
