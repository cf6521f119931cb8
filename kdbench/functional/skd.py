"""Structured distillation: similarities of pairs of places, and a critic that tells teacher from student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision, in_chunks, safe_mean, unit, upcast

#: Similarities (B, rows, nodes) that are held at a time.
_CHUNK = 2**24
_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

#: What a critic learns: Wasserstein distance, or a hinge.
Adversary: TypeAlias = Literal["wgan", "hinge"]


def nodes(feature: Tensor, patch: int = 2) -> Tensor:
    """Maxima over patches of a grid, of unit l2 norm.

    Args:
        feature: (B, C, *space), one to three spatial axes.
        patch: cells of a patch along each axis; the last one may be smaller.

    Returns:
        (B, nodes, C), float32 for low-precision input.

    Example:
        >>> nodes(torch.tensor([[[3.0, 1.0, 0.0], [2.0, 4.0, 5.0]]]))
        tensor([[[0.6000, 0.8000],
                 [0.0000, 1.0000]]])
    """
    kernel = [min(patch, cells) for cells in feature.shape[2:]]
    pooled = _POOL[len(kernel)](upcast(feature), kernel, kernel, ceil_mode=True)
    return unit(pooled.flatten(2)).transpose(1, 2)


def pair_wise_loss(student: Tensor, teacher: Tensor, patch: int = 2) -> Tensor:
    """Similarities of all pairs of nodes, ``mean_{b, i, j} (a^s_ij - a^t_ij)^2`` with ``a_ij = <f_i, f_j>``.

    Liu, Chen, Liu, Qin, Luo & Wang, Structured Knowledge Distillation for Semantic Segmentation (CVPR 2019), pair-wise
    term, with the nodes of :func:`nodes`. Rows of the similarity matrices are worked off in chunks.

    Args:
        student: (B, C_s, *space).
        teacher: (B, C_t, *space).
        patch: cells of a node along each axis.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Raises:
        KDBenchError: samples or spatial sizes differ.

    Example:
        >>> pair_wise_loss(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.ones(1, 1, 2), patch=1)
        tensor(0.5000)
    """
    if student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise KDBenchError(
            f"pair_wise_loss: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}, "
            "expected (B, C, *space) of one size"
        )
    f_s, f_t = nodes(student, patch), nodes(teacher, patch)

    def squares(rows_s: Tensor, rows_t: Tensor) -> Tensor:
        with full_precision(rows_s):
            similarities = [rows.transpose(0, 1) @ f.transpose(1, 2) for rows, f in ((rows_s, f_s), (rows_t, f_t))]
        return (similarities[0] - similarities[1]).square().mean(2).T

    step = _CHUNK // max(1, f_s.shape[0] * f_s.shape[1])
    return safe_mean(in_chunks(squares, (f_s.transpose(0, 1), f_t.transpose(0, 1)), step))


def critic_loss(student: Tensor, teacher: Tensor, adversary: Adversary = "hinge") -> Tensor:
    """What a critic minimises that tells the teacher's maps (high) from the student's (low).

    * ``wgan``: ``mean D(s) - mean D(t)``;
    * ``hinge``: ``mean max(0, 1 + D(s)) + mean max(0, 1 - D(t))``.

    The student's own term is ``-mean D(s)`` in both.

    Args:
        student: the critic's scores of the student, of any shape ``(B, ...)``.
        teacher: likewise of the teacher ``(B, ...)``.
        adversary: ``"wgan"`` or ``"hinge"``.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Example:
        >>> critic_loss(torch.tensor([-3.0]), torch.tensor([0.5]))
        tensor(0.5000)
        >>> critic_loss(torch.tensor([-3.0]), torch.tensor([0.5]), "wgan")
        tensor(-3.5000)
    """
    student, teacher = upcast(student), upcast(teacher)
    if adversary == "wgan":
        return safe_mean(student) - safe_mean(teacher)
    return safe_mean(F.relu(1 + student)) + safe_mean(F.relu(1 - teacher))


def gradient_penalty(critic: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor, share: Tensor) -> Tensor:
    """Keeps a Wasserstein critic 1-Lipschitz: ``mean_b (||grad_x sum D(x)|| - 1)^2`` between student and teacher.

    Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville, Improved Training of Wasserstein GANs (NeurIPS 2017), eq. 3.

    Args:
        critic: scores of maps.
        student: maps ``(B, ...)``, detached here.
        teacher: likewise ``(B, ...)``.
        share: of the teacher in the mixture of each sample, in [0, 1], ``(B,)``.

    Returns:
        A scalar, on the graph of the critic's parameters; zero for no samples.

    Example:
        >>> gradient_penalty(lambda x: 3 * x, torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.5, 0.5]))
        tensor(4.)
    """
    share = share.view(-1, *(1 for _ in student.shape[1:])).to(student.dtype)
    mixed = (share * teacher + (1 - share) * student).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return safe_mean((torch.linalg.vector_norm(upcast(gradient).flatten(1), dim=1) - 1).square())
