"""Relations between the nodes of a graph: to their neighbours, and to all others."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from kdbench.errors import KDBenchError, nearest
from kdbench.functional.numerics import Faithful, check_faithful, full_precision, safe_mean, unit, upcast

#: Likeness of two nodes; widths of student and teacher may differ.
Kernel: TypeAlias = Literal["rbf", "cosine", "linear", "l2"]
KERNELS: tuple[Kernel, ...] = ("rbf", "cosine", "linear", "l2")


def local_structure(nodes: Tensor, edges: Tensor, kernel: Kernel = "rbf") -> Tensor:
    """Log of how alike a node is to each of its neighbours, among them: ``log softmax_j k(x_i, x_j)``.

    Yang, Qiu, Song, Tao, Wang: Distilling Knowledge from Graph Convolutional Networks (CVPR 2020), section 3.2.

    Args:
        nodes: (N, D).
        edges: source j and target i of each edge (2, E); the neighbours of a node are the sources of its edges.
        kernel: ``rbf``, ``exp(-||x_i - x_j||^2 / 2)``; ``cosine``; ``linear``, the product; ``l2``, the distance.

    Returns:
        (E,), float32 for low-precision input.

    Raises:
        KDBenchError: there is no such kernel.

    Example:
        >>> local_structure(torch.tensor([[0.0], [0.0], [2.0]]), torch.tensor([[1, 2], [0, 0]]), "l2").exp()
        tensor([0.1192, 0.8808])
    """
    if kernel not in KERNELS:
        raise KDBenchError(f"kernel={kernel!r} is unknown; {nearest(str(kernel), KERNELS)}")
    source, target = edges
    first, second = (upcast(nodes).index_select(0, index) for index in (target, source))
    if kernel in ("rbf", "l2"):
        squared = (first - second).square().sum(1)
        # The root has no slope at zero: nodes that coincide are taken as such, without a gradient.
        apart = squared > 0
        score = (
            (-squared / 2).exp()
            if kernel == "rbf"
            else torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
        )
    else:
        score = ((unit(first) * unit(second)) if kernel == "cosine" else first * second).sum(1)
    return _log_softmax(score, target, len(nodes))


def _log_softmax(score: Tensor, group: Tensor, groups: int) -> Tensor:
    """Log-softmax of scores (E,) within each of their groups (E,)."""
    highest = score.detach().new_full((groups,), -torch.inf).scatter_reduce(0, group, score.detach(), "amax")
    shifted = score - highest[group]
    total = shifted.new_zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total[group].log()


def local_structure_loss(
    student: Tensor, teacher: Tensor, edges: Tensor, kernel: Kernel = "rbf", faithful: Faithful = "paper"
) -> Tensor:
    """Divergence between the local structures of two networks, whose widths may differ.

    Yang et al. (CVPR 2020), section 3.3. ``paper``: the mean over nodes that have a neighbour of ``KL(LS_s || LS_t)``.
    ``code``: ``KL(LS_t || LS_s)``, summed over all nodes and divided by the number of edges, as the benchmark of Joshi
    et al. (TNNLS 2022) computes it.

    Args:
        student: nodes (N, D_s).
        teacher: the same nodes (N, D_t).
        edges: source and target of each edge (2, E).
        kernel: as for :func:`local_structure`.
        faithful: ``"paper"`` or ``"code"``.

    Returns:
        A scalar, float32 for low-precision input; zero for no edges.

    Raises:
        KDBenchError: the numbers of nodes differ, or an option is unknown.

    Example:
        >>> nodes, edges = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[1, 2], [0, 0]])
        >>> local_structure_loss(nodes, nodes.roll(1), edges)
        tensor(0.0623)
    """
    check_faithful(faithful)
    _check_nodes(student, teacher, "local_structure_loss")
    s, t = local_structure(student, edges, kernel), local_structure(teacher, edges, kernel)
    if faithful == "code":
        return safe_mean(t.exp() * (t - s))
    by_node = s.new_zeros(len(student)).index_add(0, edges[1], s.exp() * (s - t))
    return safe_mean(by_node[edges[1].unique()])


def global_structure_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all pairs of nodes, ``mean_ij (cos_s_ij - cos_t_ij)^2``.

    Joshi, Liu, Xun, Lin, Foo: On Representation Knowledge Distillation for Graph Neural Networks (TNNLS 2022), global
    structure preserving loss with the cosine kernel.

    Args:
        student: nodes (N, D_s).
        teacher: the same nodes (N, D_t).

    Returns:
        A scalar, float32 for low-precision input; zero for no nodes.

    Example:
        >>> global_structure_loss(torch.eye(2), torch.ones(2, 2))
        tensor(0.5000)
    """
    _check_nodes(student, teacher, "global_structure_loss")
    with full_precision(student):
        s, t = unit(upcast(student)), unit(upcast(teacher))
        return safe_mean((s @ s.T - t @ t.T).square().flatten())


def _check_nodes(student: Tensor, teacher: Tensor, what: str) -> None:
    if len(student) != len(teacher):
        raise KDBenchError(
            f"{what}: the student has {len(student)} nodes and the teacher {len(teacher)}, expected the same"
        )
