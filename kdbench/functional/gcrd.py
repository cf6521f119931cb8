"""Contrast between the nodes of two networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, full_precision, safe_mean, unit, upcast


def node_contrast_loss(student: Tensor, teacher: Tensor, temperature: float = 0.075) -> Tensor:
    """Noise-contrastive loss in which each node has to find itself among all nodes of the other network.

    ``-mean_i log exp(c_ii / T) / sum_j exp(c_ij / T)`` with the cosine ``c_ij`` of student node i and teacher node j.
    Joshi, Liu, Xun, Lin, Foo: On Representation Knowledge Distillation for Graph Neural Networks (TNNLS 2022), G-CRD.

    Args:
        student: nodes, projected (N, D).
        teacher: the same nodes, projected (N, D).
        temperature: T > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> node_contrast_loss(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(0.3133)
    """
    check_same_shape(student, teacher, "node_contrast_loss")
    with full_precision(student):
        scores = unit(upcast(student)) @ unit(upcast(teacher)).T / temperature
        own = torch.arange(len(scores), device=scores.device)
        return safe_mean(F.cross_entropy(scores, own, reduction="none"))
