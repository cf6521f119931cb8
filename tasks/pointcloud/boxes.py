"""Rotated boxes: corners, overlaps and non-maximum suppression.

A box is ``(x, y, z, l, w, h, yaw)``: centre and sizes in metres, yaw in radians about z, 0 where ``l`` lies along x.
A bird's-eye-view (BEV) box is ``(x, y, l, w, yaw)``. Everything here is batched, deterministic and runs in the dtype
and on the device of its inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS_PER_BLOCK = 1 << 22  # bounds the (rows, M) mask of the distance test, not the result
_CORNERS = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))  # counter-clockwise


def limit_period(value: Tensor, offset: float = 0.5, period: float = math.pi) -> Tensor:
    """Wraps ``value`` into ``[-offset * period, (1 - offset) * period)``."""
    return value - torch.floor(value / period + offset) * period


def to_bev(boxes: Tensor) -> Tensor:
    """Drops z and h: ``(N, 7)`` -> ``(N, 5)``."""
    return boxes[:, [0, 1, 3, 4, 6]]


def turned(values: Tensor, angle: Tensor) -> Tensor:
    """Turns x and y ``(..., 2)`` counter-clockwise by angles ``(...)`` in radians."""
    cos, sin = angle.cos(), angle.sin()
    x, y = values.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def inside(points: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """Says which points lie in the box of their row.

    Args:
        points: ``(R, N, 3)``.
        boxes: ``(R, 7)``.
        margin: By which a box is larger on every side, metres.

    Returns:
        ``(R, N)`` bool; the boundary is inside.
    """
    offset = points - boxes[:, None, :3]
    half = boxes[:, None, 3:6] / 2 + margin
    across = turned(offset[..., :2], -boxes[:, 6:]).abs() <= half[..., :2]
    return across.all(-1) & (offset[..., 2].abs() <= half[..., 2])


def bev_corners(boxes: Tensor) -> Tensor:
    """Corners of BEV boxes ``(N, 5)``, counter-clockwise from front left: ``(N, 4, 2)``."""
    unit = boxes.new_tensor(_CORNERS)
    x, y = (unit * boxes[:, None, 2:4]).unbind(-1)
    cos, sin = boxes[:, 4:5].cos(), boxes[:, 4:5].sin()
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1) + boxes[:, None, :2]


def corners(boxes: Tensor) -> Tensor:
    """Corners of boxes ``(N, 7)``: ``(N, 8, 3)``, the four bottom ones as in :func:`bev_corners`, then the top ones."""
    flat = bev_corners(to_bev(boxes))
    half = boxes[:, 5:6] / 2
    low, high = (boxes[:, 2:3] - half).expand(-1, 4), (boxes[:, 2:3] + half).expand(-1, 4)
    return torch.cat((torch.cat((flat, low[..., None]), -1), torch.cat((flat, high[..., None]), -1)), dim=1)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by pairs of BEV boxes, ``(P, 5)`` and ``(P, 5)`` -> ``(P,)``.

    In the frame of ``b`` the shared area is the integral, over b's range of x, of a's upper minus a's lower boundary,
    both clamped to b's range of y. By Green's theorem that is ``-∮ clamp(y) dx`` over the four edges of ``a``, each cut
    to b's range of x. No vertices are found or sorted and every step is continuous in the boxes, so that identical,
    touching and empty boxes need no special case.
    """
    cos, sin = b[:, 4].cos(), b[:, 4].sin()
    dx, dy = (a[:, :2] - b[:, :2]).unbind(-1)
    local = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx, a[:, 2], a[:, 3], a[:, 4] - b[:, 4]), dim=-1)
    x0, y0 = bev_corners(local).unbind(-1)
    x1, y1 = x0.roll(-1, -1), y0.roll(-1, -1)
    half_l, half_w = b[:, 2:3] / 2, b[:, 3:4] / 2

    # An edge without extent in x adds nothing: start equals stop below, whatever the fractions are.
    run = torch.where(x1 == x0, torch.ones_like(x0), x1 - x0)
    start, stop = torch.clamp(x0, -half_l, half_l), torch.clamp(x1, -half_l, half_l)
    begin = y0 + ((start - x0) / run).clamp(0, 1) * (y1 - y0)
    end = y0 + ((stop - x0) / run).clamp(0, 1) * (y1 - y0)

    # Mean of clamp(y) along the cut edge: the share below b at -half_w, above it at half_w, and the linear rest.
    low, high = torch.minimum(begin, end), torch.maximum(begin, end)
    rise = high - low
    low_in, high_in = torch.clamp(low, -half_w, half_w), torch.clamp(high, -half_w, half_w)
    middle = (low_in + high_in) / 2
    below = (torch.minimum(high, -half_w) - low).clamp(min=0)
    above = (high - torch.maximum(low, half_w)).clamp(min=0)
    level = rise <= torch.finfo(a.dtype).eps * half_w
    total = (high_in - low_in) * middle + half_w * (above - below)
    mean = torch.where(level, middle, total / torch.where(level, torch.ones_like(rise), rise))

    area = -(mean * (stop - start)).sum(-1)
    whole = b[:, 2] * b[:, 3]
    # Boxes apart leave a rounding error, which must not pass for an overlap where the threshold is 0.
    area = torch.where(area > 8 * torch.finfo(a.dtype).eps * whole, area, 0)
    return torch.minimum(area, torch.minimum(a[:, 2] * a[:, 3], whole))


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Whether the circumscribed circles of BEV boxes meet; broadcasts over all but the last dimension."""
    reach = (torch.linalg.vector_norm(a[..., 2:4], dim=-1) + torch.linalg.vector_norm(b[..., 2:4], dim=-1)) / 2
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    return dx * dx + dy * dy < reach * reach


def _near_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs of ``(N, 5)`` and ``(M, 5)`` that :func:`_near` keeps, in row-major order."""
    rows = max(1, _PAIRS_PER_BLOCK // max(1, len(b)))
    found = [
        _near(block[:, None], b[None]).nonzero() + torch.tensor([k * rows, 0], device=a.device)
        for k, block in enumerate(a.split(rows))
    ]
    i, j = torch.cat(found).unbind(-1)
    return i, j


def _iou(shared: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Shared area or volume over that of the union; 0 where that is empty."""
    whole = a + b - shared
    return torch.where(whole > 0, shared / torch.where(whole > 0, whole, torch.ones_like(whole)), 0)


def _iou_bev(a: Tensor, b: Tensor) -> Tensor:
    return _iou(_intersection(a, b), a[:, 2] * a[:, 3], b[:, 2] * b[:, 3])


def _iou_3d(a: Tensor, b: Tensor) -> Tensor:
    top = torch.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = torch.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    shared = _intersection(to_bev(a), to_bev(b)) * (top - bottom).clamp(min=0)
    return _iou(shared, a[:, 3:6].prod(-1), b[:, 3:6].prod(-1))


def rotated_iou_bev(a: Tensor, b: Tensor, aligned: bool = False) -> Tensor:
    """Exact intersection over union of rotated BEV boxes.

    Args:
        a: ``(N, 5)`` boxes.
        b: ``(M, 5)`` boxes; ``(N, 5)`` if ``aligned``.
        aligned: Compare row with row instead of all with all.

    Returns:
        ``(N, M)``, or ``(N,)`` if ``aligned``.
    """
    if aligned:
        (i,) = _near(a, b).nonzero(as_tuple=True)
        return a.new_zeros(len(a)).index_put((i,), _iou_bev(a[i], b[i]))
    i, j = _near_pairs(a, b)
    return a.new_zeros(len(a), len(b)).index_put((i, j), _iou_bev(a[i], b[j]))


def iou_3d(a: Tensor, b: Tensor, aligned: bool = False) -> Tensor:
    """Exact intersection over union of boxes ``(N, 7)`` and ``(M, 7)`` by volume; see :func:`rotated_iou_bev`."""
    if aligned:
        (i,) = _near(to_bev(a), to_bev(b)).nonzero(as_tuple=True)
        return a.new_zeros(len(a)).index_put((i,), _iou_3d(a[i], b[i]))
    i, j = _near_pairs(to_bev(a), to_bev(b))
    return a.new_zeros(len(a), len(b)).index_put((i, j), _iou_3d(a[i], b[j]))


def rotated_nms(
    boxes: Tensor, scores: Tensor, threshold: float, max_keep: int | None = None, labels: Tensor | None = None
) -> Tensor:
    """Greedy non-maximum suppression of rotated BEV boxes.

    The greedy choice is found as the fixed point of "a box stays if no better box that stays overlaps it", iterated on
    all pairs at once (Cluster-NMS, Zheng et al. 2021): as many rounds as the longest chain of suppressions.

    Args:
        boxes: ``(N, 5)`` boxes.
        scores: ``(N,)`` scores; of equal ones the lower index goes first.
        threshold: A box is suppressed by a better one whose IoU with it is greater.
        max_keep: How many to keep at most.
        labels: ``(N,)`` classes; boxes of different classes do not suppress each other.

    Returns:
        ``(K,)`` indices into ``boxes``, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    i, j = _near_pairs(boxes, boxes)
    pair = i < j
    if labels is not None:
        pair &= labels[order][i] == labels[order][j]
    i, j = i[pair], j[pair]
    hit = _iou_bev(boxes[i], boxes[j]) > threshold
    i, j = i[hit], j[hit]
    keep = torch.ones_like(order, dtype=torch.bool)
    while True:
        stay = torch.ones_like(keep)
        stay[j[keep[i]]] = False
        if torch.equal(stay, keep):
            return order[keep][:max_keep]
        keep = stay
