"""Codes of local structure: nodes by how near they are to the vectors of a codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import full_precision, safe_mean, unit, upcast


def code_distances(nodes: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances between the directions of nodes and of codes, ``2 - 2 cos``.

    Args:
        nodes: (N, D).
        codebook: (K, D).

    Returns:
        (N, K), float32 for low-precision input.

    Example:
        >>> code_distances(torch.tensor([[2.0, 0.0]]), torch.eye(2))
        tensor([[0., 2.]])
    """
    with full_precision(nodes):
        return 2 - 2 * unit(upcast(nodes)) @ unit(upcast(codebook)).T


def code_loss(student: Tensor, teacher: Tensor, codebook: Tensor, temperature: float = 0.1) -> Tensor:
    """Divergence between the soft assignments of two networks' nodes to the codes of one codebook.

    ``T^2 mean KL(softmax(-d_t / T) || softmax(-d_s / T))`` with the distances d of :func:`code_distances`. Yang, Tian,
    Xu, Liu, Hong, Qu, Zhang, Cui, Zhang, Leskovec: VQGraph: Rethinking Graph Representation Space for Bridging GNNs and
    MLPs (ICLR 2024), the distillation of structure-aware codes.

    Args:
        student: nodes, projected (N, D).
        teacher: the same nodes (N, D).
        codebook: (K, D).
        temperature: T > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Raises:
        KDBenchError: the numbers of nodes differ.

    Example:
        >>> code_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.eye(2), temperature=1.0)
        tensor(0.3278)
    """
    rows = categorical_kl(-code_distances(student, codebook), -code_distances(teacher, codebook), temperature)
    return temperature**2 * safe_mean(rows)


def quantisation_loss(nodes: Tensor, codebook: Tensor) -> Tensor:
    """Mean squared distance between the direction of each node and that of its nearest code.

    Args:
        nodes: (N, D).
        codebook: (K, D), to which the gradient is meant.

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Example:
        >>> quantisation_loss(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2))
        tensor(0.2929)
    """
    return safe_mean(code_distances(nodes, codebook).amin(1))


def edge_prediction_loss(nodes: Tensor, edges: Tensor, others: Tensor) -> Tensor:
    """Binary cross-entropy of telling edges from other pairs by the product of both ends.

    Args:
        nodes: (N, D).
        edges: source and target of each edge (2, E).
        others: as many pairs, drawn (2, E).

    Returns:
        A scalar, float32 for low-precision input; zero for no edges.

    Example:
        >>> edge_prediction_loss(torch.zeros(2, 3), torch.tensor([[0], [1]]), torch.tensor([[0], [0]]))
        tensor(0.6931)
    """
    source, target = torch.cat([edges, others], 1)
    rows = upcast(nodes)
    score = (rows.index_select(0, source) * rows.index_select(0, target)).sum(1)
    truth = (torch.arange(len(score), device=score.device) < edges.shape[1]).to(score.dtype)
    return safe_mean(F.binary_cross_entropy_with_logits(score, truth, reduction="none"))


def code_perplexity(counts: Tensor) -> Tensor:
    """How many codes are used, as the exponential of the entropy of their shares.

    Args:
        counts: uses of each code (K,).

    Returns:
        A scalar from 1 to K; 0 where none is used.

    Example:
        >>> code_perplexity(torch.tensor([2, 2, 0]))
        tensor(2.)
    """
    shares = counts / counts.sum().clamp_min(1)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return torch.where(counts.sum() > 0, entropy.exp(), 0.0)
