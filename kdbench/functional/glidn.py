"""Distances between the nodes of two contexts."""

from __future__ import annotations

from torch import Tensor

from kdbench.base.collectives import normalizer
from kdbench.functional.numerics import check_same_shape, upcast


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error in units of the teacher's size, ``sum_n ||s_n - t_n||^2 / sum_n ||t_n||^2``.

    A ratio of sums: nodes at which the teacher is silent have a part in it and do not blow it up.

    Args:
        student: nodes, adapted (N, D).
        teacher: the same nodes (N, D).

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> import torch
        >>> relative_error(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor(1.)
    """
    check_same_shape(student, teacher, "relative_error")
    teacher = upcast(teacher)
    return (upcast(student) - teacher).square().sum() / normalizer(teacher.square().sum(), 1e-12)
