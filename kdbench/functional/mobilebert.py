"""Feature maps of a layer compared place by place, as they are or apart from their mean and variance."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, upcast, weighted_mean


def feature_map_loss(
    student: Tensor, teacher: Tensor, *, faithful: Faithful = "paper", weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of the feature maps of a layer.

    Sun, Yu, Song, Liu, Yang & Zhou, MobileBERT (ACL 2020), section 3.4. ``faithful="code"`` compares, as the trainer of
    TensorFlow's model garden does, maps that a layer normalisation without weights has made alike, and adds the squared
    difference of the means of each place and the absolute difference of their variances.

    Args:
        student: feature maps (N, D).
        teacher: feature maps (N, D).
        faithful: ``"paper"`` or ``"code"``.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> feature_map_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(5.)
        >>> feature_map_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 5.0]]), faithful="code")
        tensor(4.)
    """
    check_faithful(faithful)
    check_same_shape(student, teacher, "feature_map_loss")
    student, teacher = upcast(student), upcast(teacher)
    if faithful == "paper":
        return weighted_mean((student - teacher).square().mean(1), weight)
    # The small number is that of the layer normalisation in TensorFlow.
    normed = [F.layer_norm(x, x.shape[1:], eps=1e-3) for x in (student, teacher)]
    means = [x.mean(1, keepdim=True) for x in (student, teacher)]
    variances = [(x - mean).square().mean(1) for x, mean in zip((student, teacher), means, strict=True)]
    rows = (normed[0] - normed[1]).square().mean(1) + (means[0] - means[1])[:, 0].square()
    return weighted_mean(rows + (variances[0] - variances[1]).abs(), weight)
