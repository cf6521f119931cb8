"""Where the networks of a graph look: which nodes are active, and which neighbours are attended to."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast


def node_energy(nodes: Tensor, graph: Tensor, power: float = 2.0) -> Tensor:
    """Attention map over the nodes of each graph, ``q_n = sum_d |x_nd|^power``, scaled to unit l2 norm by graph.

    Zagoruyko & Komodakis, Paying More Attention to Attention (ICLR 2017), section 3.1; nodes stand for positions.

    Args:
        nodes: (N, D).
        graph: graph of each node (N,).
        power: exponent >= 1.

    Returns:
        (N,), float32 for low-precision input; zero for the nodes of a graph without any activation.

    Example:
        >>> node_energy(torch.tensor([[3.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), power=1.0)
        tensor([0.8321, 0.5547, 1.0000])
    """
    energy = upcast(nodes).abs().pow(power).sum(1)
    graphs = int(graph.max()) + 1 if len(graph) else 0
    squared = energy.new_zeros(graphs).index_add(0, graph, energy.square())
    active = squared > 0
    norm = torch.where(active, torch.where(active, squared, 1.0).sqrt(), 1.0)
    return energy / norm[graph]


def node_energy_loss(student: Tensor, teacher: Tensor, graph: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of the attention maps of two networks over their nodes, whose widths may differ.

    Args:
        student: (N, D_s).
        teacher: (N, D_t).
        graph: graph of each node (N,).
        power: exponent >= 1.

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Example:
        >>> graph = torch.tensor([0, 0])
        >>> node_energy_loss(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]), graph)
        tensor(1.)
    """
    return safe_mean((node_energy(student, graph, power) - node_energy(teacher, graph, power)).square())


def edge_attention_loss(student: Tensor, teacher: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean over nodes of ``KL(a_t || a_s)`` between the attention that each pays to its neighbours.

    Args:
        student: attention on each edge (E,), which sums to one over the edges of a target.
        teacher: likewise (E,).
        target: node that attends, of each edge (E,).
        eps: least attention.

    Returns:
        A scalar, float32 for low-precision input; zero for no edges.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> edge_attention_loss(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
        tensor(0.6931)
    """
    check_same_shape(student, teacher, "edge_attention_loss")
    s, t = (upcast(x).clamp(min=eps) for x in (student, teacher))
    nodes, place = target.unique(return_inverse=True)
    return safe_mean(s.new_zeros(len(nodes)).index_add(0, place, t * (t.log() - s.log())))
