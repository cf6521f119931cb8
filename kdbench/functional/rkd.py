"""Relations between samples: distances of pairs and angles of triplets (RKD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision, safe_mean, upcast

#: Elements of the (anchors, B, D) differences and (anchors, B, B) angles that are held at a time.
_CHUNK = 2**24


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the pairwise distances, each scaled by the mean positive distance of its batch.

    Park et al., Relational Knowledge Distillation (CVPR 2019), the distance-wise loss; the mean is over all B^2 ordered
    pairs as in the authors' code. Samples that coincide have distance and gradient zero.

    Args:
        student: (B, ...), flattened per sample.
        teacher: (B, ...), any other trailing shape.

    Returns:
        A scalar, float32 for low-precision input; zero for fewer than two samples.

    Example:
        >>> distance_loss(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [4.0]]))
        tensor(0.0312)
    """
    student, teacher = _flat(student, teacher, "distance_loss")
    size = max(student.shape[0], 1)
    return F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="sum") / size**2


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles ``j i k`` of all triplets of samples.

    Park et al., Relational Knowledge Distillation (CVPR 2019), the angle-wise loss; the mean is over all B^3 ordered
    triplets as in the authors' code, degenerate ones included. Anchors are worked off in chunks, which are computed
    again in backward where there are several: a batch of 256 with D = 512 takes about 0.45 GiB.

    Args:
        student: (B, ...), flattened per sample.
        teacher: (B, ...), any other trailing shape.

    Returns:
        A scalar, float32 for low-precision input; zero for fewer than three samples.

    Example:
        >>> line, corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), torch.eye(3)
        >>> angle_loss(line, corner)
        tensor(0.0926)
    """
    student, teacher = _flat(student, teacher, "angle_loss")
    size = student.shape[0]
    step = max(1, _CHUNK // max(1, size * (size + max(student.shape[1], teacher.shape[1]))))
    if step >= size:
        return _angle_sum(student, teacher, 0, size) / max(size, 1) ** 3
    sums = [
        checkpoint(_angle_sum, student, teacher, i, i + step, use_reentrant=False, preserve_rng_state=False)
        for i in range(0, size, step)
    ]
    return torch.stack(sums).sum() / size**3


def _flat(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if student.shape[0] != teacher.shape[0] or min(student.ndim, teacher.ndim) < 2:
        raise KDBenchError(
            f"{what}: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}, "
            "expected (B, ...) with one batch size"
        )
    return upcast(student).flatten(1), upcast(teacher).flatten(1)


def _distances(points: Tensor) -> Tensor:
    """Distances (B, B) over their positive mean."""
    # Without the matrix product, which cancels where samples are near; its backward gives zero at distance zero.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angle_sum(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Summed Huber loss of the triplets whose anchor is one of ``start:stop``."""
    return F.smooth_l1_loss(_cosines(student, start, stop), _cosines(teacher, start, stop), reduction="sum")


def _cosines(points: Tensor, start: int, stop: int) -> Tensor:
    """Cosines (anchors, B, B) between the directions from each anchor to two samples; zero where one has none."""
    difference = points - points[start:stop, None]
    length = torch.linalg.vector_norm(difference, dim=2, keepdim=True)
    # Samples nearer than the rounding of their coordinates have no direction, whose gradient would have no bound.
    apart = length > torch.finfo(points.dtype).eps * safe_mean(points.detach().square()).sqrt()
    unit = difference * torch.where(apart, 1 / torch.where(apart, length, 1.0), 0.0)
    with full_precision(points):
        return unit @ unit.transpose(1, 2)
