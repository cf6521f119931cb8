"""Pearson correlation of features, channel by channel over a batch."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, safe_mean, spread, unit, upcast


def pearson_feature_loss(student: Tensor, teacher: Tensor, faithful: Faithful = "paper") -> Tensor:
    """How little each channel of the student goes along with the teacher's, over all cells of all samples.

    Cao, Zhang, Gao, Cheng, Cheng & Cheng, PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient (NeurIPS 2022): half the mean squared difference of the features, each channel with mean
    zero and variance one over its m values, which is ``mean_c (1 - r_c)`` with Pearson's r.

    Args:
        student: (B, C, *space).
        teacher: Same shape.
        faithful: ``paper``; ``code`` takes variances that divide by m - 1, which is ``(m - 1) / m`` of it.

    Returns:
        A scalar, float32 for low-precision input, from 0 to 2; zero for no samples. A channel that does not vary is
        zero everywhere, and no gradient comes to it: 1/2 where the other's varies.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> import torch
        >>> pearson_feature_loss(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[5.0, 7.0, 9.0]]]))
        tensor(0.)
    """
    check_same_shape(student, teacher, "pearson_feature_loss")
    check_faithful(faithful)
    s, t = (_directions(feature) for feature in (student, teacher))
    values = s.shape[1]
    share = 1.0 if faithful == "paper" else 1 - 1 / max(values, 1)
    return share / 2 * safe_mean((s - t).square().sum(1))


def _directions(feature: Tensor) -> Tensor:
    """Returns each channel, centred, as a vector of unit length (C, B * prod(space)); zero where it does not vary."""
    rows = upcast(feature).transpose(0, 1).flatten(1)
    if not rows.shape[1]:
        return rows
    centred, _, varies = spread(rows)
    return unit(centred * varies)
