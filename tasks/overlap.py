"""Counts by sample and class, of which overlap and F1 are made."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(said: Tensor, true: Tensor, classes: int, ignored: int) -> Tensor:
    """Counts for each sample and class the places that are met, said and true.

    Args:
        said: ``(B, …)`` classes.
        true: Likewise; places of the class ``ignored`` do not count.
        classes: How many there are.
        ignored: What stands for no class.

    Returns:
        ``(B, classes, 3)`` int64.
    """
    rows = torch.arange(len(said), device=said.device).view(-1, *[1] * (said.ndim - 1)).expand_as(said)
    known = true != ignored

    def count(where: Tensor, labels: Tensor) -> Tensor:
        places = rows[where] * classes + labels[where]
        return places.bincount(minlength=len(said) * classes).view(len(said), classes)

    return torch.stack([count(known & (said == true), true), count(known, said), count(known, true)], -1)
