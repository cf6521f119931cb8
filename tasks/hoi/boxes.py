"""Graphs of people and objects of which boxes are known."""

from __future__ import annotations

import numpy as np

BOX = ("left", "top", "right", "bottom")
#: Of a pair: where the other's middle is, how far, and how much of their union both share.
EDGE = ("offset x", "offset y", "distance", "overlap")


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns intersection over union of boxes ``(..., 4)`` and ``(..., 4)``, ``(...)``; 0 where both are empty."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    met = np.clip(high - low, 0, None).prod(-1)
    own, other = (np.clip(x[..., 2:] - x[..., :2], 0, None).prod(-1) for x in (a, b))
    union = own + other - met
    return np.divide(met, union, out=np.zeros_like(met), where=union > 0)


def edges(boxes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns what nodes see of one another.

    Args:
        boxes: ``(T, M, 4)`` left, top, right, bottom.
        mask: ``(T, M)`` bool, those that are there.

    Returns:
        ``(T, M, M, 4)`` values named by :data:`EDGE`; zero where one of a pair is not there, and of a node to itself.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    offset = middle[:, None] - middle[:, :, None]
    shared = overlap(boxes[:, :, None], boxes[:, None])
    found = np.concatenate([offset, np.linalg.norm(offset, axis=-1)[..., None], shared[..., None]], -1)
    pairs = mask[:, :, None] & mask[:, None] & ~np.eye(mask.shape[1], dtype=bool)
    return np.where(pairs[..., None], found, 0.0)
