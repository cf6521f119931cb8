"""A critic of what a teacher wrote, set by the recall of what is right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.errors import KDBenchError


def accepted(scores: Tensor, checked: Tensor, right: Tensor, recall: float) -> Tensor:
    """``score_n >= t``, ``t`` the highest threshold that accepts a share ``recall`` of what was checked and is right.

    West et al., Symbolic Knowledge Distillation (NAACL 2022); the release has a strict cut at a recall of 0.5 and a
    medium one at 0.8.

    Args:
        scores: of the critic (N,), higher is better.
        checked: which of them were checked (M,) integers below N.
        right: whether each of those is right (M,) bool.
        recall: above 0, at most 1.

    Returns:
        Which are accepted (N,) bool; none where nothing that was checked is right.

    Raises:
        KDBenchError: The recall is none.

    Example:
        >>> import torch
        >>> accepted(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([1, 2]), torch.tensor([True, True]), 0.5)
        tensor([False,  True, False, False])
    """
    if not 0 < recall <= 1:
        raise KDBenchError(f"accepted: found recall={recall:g}, expected above 0 and at most 1")
    own = scores[checked][right].sort(descending=True).values
    if not len(own):
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores >= own[math.ceil(recall * len(own)) - 1]
