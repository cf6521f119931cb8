"""Low and high frequencies of a graph's predictions: of neighbours in common, and in what they differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import check_same_shape, safe_mean, upcast


def low_frequency_loss(student: Tensor, teacher: Tensor, edges: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of each node's prediction from the teacher's of itself and of its neighbours.

    ``mean_(j -> i) KL(p_t_j || p_s_i)`` over all edges and one of each node with itself. Wu, Lin, Huang, Fan, Li:
    Extracting Low-/High-Frequency Knowledge from Graph Neural Networks and Injecting it into MLPs (AAAI 2023), the
    low-frequency distillation loss.

    Args:
        student: logits (N, C).
        teacher: logits of the same nodes (N, C).
        edges: source j and target i of each edge (2, E), without edges of a node with itself.
        temperature: T > 0, divides both logits.

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> low_frequency_loss(logits, logits, torch.tensor([[1], [0]]))
        tensor(0.1446)
    """
    check_same_shape(student, teacher, "low_frequency_loss")
    own = torch.arange(len(student), device=student.device).expand(2, -1)
    source, target = torch.cat([edges, own], 1)
    log_s = F.log_softmax(upcast(student) / temperature, dim=1).index_select(0, target)
    log_t = F.log_softmax(upcast(teacher) / temperature, dim=1).index_select(0, source)
    return safe_mean((log_t.exp() * (log_t - log_s)).sum(1))


def high_frequency_loss(student: Tensor, teacher: Tensor, edges: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence between how predictions differ along edges: ``mean_(j -> i) KL(q_t_ij || q_s_ij)``.

    ``q_ij = softmax(|z_i - z_j| / T)`` over classes, of logits z. Wu, Lin, Huang, Fan, Li: Extracting
    Low-/High-Frequency Knowledge from Graph Neural Networks and Injecting it into MLPs (AAAI 2023), the high-frequency
    distillation loss.

    Args:
        student: logits (N, C).
        teacher: logits of the same nodes (N, C).
        edges: source j and target i of each edge (2, E).
        temperature: T > 0, divides both differences.

    Returns:
        A scalar, float32 for low-precision input; zero for no edges.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        >>> high_frequency_loss(student, teacher, torch.tensor([[1], [0]]))
        tensor(0.4621)
    """
    check_same_shape(student, teacher, "high_frequency_loss")
    source, target = edges
    s, t = ((upcast(z).index_select(0, target) - upcast(z).index_select(0, source)).abs() for z in (student, teacher))
    return safe_mean(categorical_kl(s, t, temperature))
