"""Instance-conditional distillation: what a decoder that looks for an instance attends to in the teacher's feature.

Kang, Zhang, Zhang, Sun & Zheng, Instance-Conditional Knowledge Distillation for Object Detection (NeurIPS 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast, weighted_mean

#: Length of the longest wave of an embedding over that of the shortest.
_WAVES = 10000.0
#: Sizes of instances that a description tells apart, and where they begin: log2 of pixels.
SIZES, _SMALLEST = 5, 5.0


def sine_embedding(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions from 0 to 1, of ``width / 2`` wave lengths.

    Args:
        positions: any shape, e.g. (B, I).
        width: even.

    Returns:
        (B, I, width): the axes of the positions and one more.

    Example:
        >>> sine_embedding(torch.tensor([0.0, 0.125]), 2)
        tensor([[0.0000, 1.0000],
                [0.7071, 0.7071]])
    """
    rate = _WAVES ** (-2 * torch.arange(width // 2, device=positions.device, dtype=positions.dtype) / width)
    angle = 2 * math.pi * positions[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


def describe_instances(
    boxes: Tensor, labels: Tensor, points: Tensor, extent: Tensor, classes: int, width: int
) -> Tensor:
    """Describes instances by class, a point inside and rough size: what a decoder is to find each by.

    Args:
        boxes: left, top, right, bottom as shares of the image (B, I, 4).
        labels: classes (B, I), anything where there is no instance.
        points: across and down, as shares (B, I, 2).
        extent: width and height of the image in pixels (2,).
        classes: K.
        width: of the embedding of a point's coordinate, even.

    Returns:
        (B, I, K + 2 * width + 10).

    Example:
        >>> box, point = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]]), torch.tensor([[[0.25, 0.25]]])
        >>> describe_instances(box, torch.tensor([[1]]), point, torch.tensor([64.0, 64.0]), 3, 4).shape
        torch.Size([1, 1, 21])
    """
    known = F.one_hot(labels.clamp(0, classes - 1), classes).to(boxes.dtype)
    pixels = ((boxes[..., 2:] - boxes[..., :2]) * extent).clamp(min=1)
    size = F.one_hot((pixels.log2() - _SMALLEST).clamp(0, SIZES - 1).long(), SIZES).to(boxes.dtype)
    return torch.cat([known, sine_embedding(points, width).flatten(2), size.flatten(2)], 2)


def instance_losses(predicted: Tensor, sides: Tensor, real: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a decoder tells real instances from made-up ones, and finds the sides of the real ones.

    The distance of each side is over the length of the box along that axis.

    Args:
        predicted: a logit, and four logits of the distances (B, I, 5).
        sides: distances from a point to left, top, right, bottom, as shares of the image (B, I, 4).
        real: which instances are real, bool (B, I).
        there: which rows are instances, bool (B, I).

    Returns:
        Two scalars: cross-entropy over the instances, absolute distances summed over sides over the real ones.

    Example:
        >>> yes, sides = torch.tensor([[True]]), torch.full((1, 1, 4), 0.25)
        >>> instance_losses(torch.zeros(1, 1, 5), sides, yes, yes)
        (tensor(0.6931), tensor(2.))
    """
    predicted = upcast(predicted)
    entropy = F.binary_cross_entropy_with_logits(predicted[..., 0], real.to(predicted), reduction="none")
    length = (sides + sides[..., [2, 3, 0, 1]]).clamp(min=1e-7)
    off = ((predicted[..., 1:].sigmoid() - sides).abs() / length).sum(2)
    return weighted_mean(entropy.flatten(), there.flatten()), weighted_mean(off.flatten(), real.flatten())


def instance_value_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Squared distance of values where instances are attended to, the values of a head normalised at each place.

    Args:
        student: values of each head at each place (B, heads, S, D).
        teacher: Same shape.
        weight: of each place, not negative (B, heads, S).

    Returns:
        A scalar, float32 for low-precision input: a weighted mean over places, then a mean; zero for no weights.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> values = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).view(1, 1, 2, 2)
        >>> instance_value_loss(-values, values, torch.tensor([[[1.0, 0.0]]]))
        tensor(3.9996)
    """
    check_same_shape(student, teacher, "instance_value_loss")
    width = student.shape[-1:]
    s, t = (F.layer_norm(upcast(x), width, eps=1e-4) for x in (student, teacher))
    share = weight / weight.sum(2, keepdim=True).clamp(min=1e-6)
    return safe_mean((share * (s - t).square().mean(3)).sum(2))
