"""Forgetting by two teachers: of what stays, a network that knows it; of what goes, one that knows nothing."""

from __future__ import annotations

from torch import Tensor

from kdbench.features import Law
from kdbench.functional.divergence import divergence
from kdbench.functional.numerics import check_same_shape, safe_mean, upcast


def unlearning_response_loss(
    student: Tensor, preserver: Tensor, destroyer: Tensor, forgotten: Tensor, law: Law = "categorical"
) -> Tensor:
    """``mean_kept KL(preserver || student) + mean_forgotten KL(destroyer || student)`` of predictions.

    Sinha, Mandal, Kankanhalli: Distill to Delete: Unlearning in Graph Networks with Knowledge Distillation (2023), the
    response-based loss. A mean over no rows is zero.

    Args:
        student: logits (N, C).
        preserver: logits (N, C) of the network that knows everything.
        destroyer: logits (N, C) of the network that knows nothing.
        forgotten: which rows are to be forgotten (N,), bool.
        law: ``"categorical"`` for a softmax head, ``"bernoulli"`` for sigmoids.

    Returns:
        A scalar, float32 for low-precision input.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> import torch
        >>> student, none = torch.zeros(2, 2), torch.zeros(2, 2)
        >>> unlearning_response_loss(student, torch.tensor([[2.0, 0.0], [9.0, 0.0]]), none, torch.tensor([False, True]))
        tensor(0.3278)
    """
    check_same_shape(preserver, destroyer, "unlearning_response_loss")
    kept = divergence(student[~forgotten], preserver[~forgotten], law=law)
    return safe_mean(kept) + safe_mean(divergence(student[forgotten], destroyer[forgotten], law=law))


def unlearning_feature_loss(student: Tensor, preserver: Tensor, destroyer: Tensor, forgotten: Tensor) -> Tensor:
    """The same of features: ``mean_kept (h_s - h_preserver)^2 + mean_forgotten (h_s - h_destroyer)^2``, also over D.

    Sinha, Mandal, Kankanhalli: Distill to Delete: Unlearning in Graph Networks with Knowledge Distillation (2023), the
    feature-based loss.

    Args:
        student: features (N, D).
        preserver: of the network that knows everything (N, D).
        destroyer: of the network that knows nothing (N, D).
        forgotten: which rows are to be forgotten (N,), bool.

    Returns:
        A scalar, float32 for low-precision input; a mean over no rows is zero.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> import torch
        >>> ones, forgotten = torch.ones(2, 3), torch.tensor([False, True])
        >>> unlearning_feature_loss(torch.zeros(2, 3), ones, 2 * ones, forgotten)
        tensor(5.)
    """
    check_same_shape(student, preserver, "unlearning_feature_loss")
    check_same_shape(preserver, destroyer, "unlearning_feature_loss")
    rows = upcast(student)
    kept = (rows - upcast(preserver)).square()[~forgotten]
    return safe_mean(kept) + safe_mean((rows - upcast(destroyer)).square()[forgotten])
