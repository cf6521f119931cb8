"""Token relation graphs: which tokens of a batch are near each other, and what a token is among those of its image."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, full_precision, safe_mean, unit, upcast


def _squared_distances(tokens: Tensor) -> Tensor:
    """Squared Euclidean distances (N, N) between the rows of (N, D)."""
    with full_precision(tokens):
        products = tokens @ tokens.T
    squares = tokens.square().sum(dim=1)
    return (squares[:, None] + squares - 2 * products).clamp_min(0)


@torch.no_grad()
def neighbour_mask(tokens: Tensor, k: int) -> Tensor:
    """Says whether token i is among the k nearest of token j, itself left out.

    Args:
        tokens: (N, D).
        k: neighbours, clamped to N - 1.

    Returns:
        (N, N) bool with k true entries in every column j.

    Example:
        >>> neighbour_mask(torch.tensor([[0.0], [1.0], [3.0]]), k=1)
        tensor([[False,  True, False],
                [ True, False,  True],
                [False, False, False]])
    """
    distance = _squared_distances(upcast(tokens)).fill_diagonal_(torch.inf)
    nearest = distance.topk(min(k, max(len(tokens) - 1, 0)), dim=1, largest=False).indices
    return torch.zeros_like(distance, dtype=torch.bool).scatter_(1, nearest, True).T


def token_local_loss(student: Tensor, teacher: Tensor, k: int, sigma: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Divergence between the neighbourhoods of every token in the student's and in the teacher's graph.

    Zhang, Liu & He, Knowledge Distillation via Token-level Relationship Graph (2023). With
    ``A_ij = exp(-||t_i - t_j||^2 / (2 sigma))`` where i is among the k nearest neighbours of j, else 0:
    ``mean_i KL(softmax_j A^S_ij || softmax_j A^T_ij)``. (The paper sums over i.) Both graphs have the teacher's
    neighbours, so that a student's token is compared at the same places; and as a softmax of values in [0, 1] is
    almost flat, A is divided by a temperature first.

    Args:
        student: tokens (N, D_s).
        teacher: the same tokens (N, D_t).
        k: neighbours.
        sigma: width of the kernel, in squared units of the tokens, > 0.
        temperature: of both softmaxes, > 0; 1 is the paper's equation.

    Returns:
        A scalar, float32 for low-precision input; zero for no tokens or a single one.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [2.0], [1.0]]), torch.tensor([[0.0], [1.0], [3.0]])
        >>> token_local_loss(student, teacher, k=1), token_local_loss(teacher, teacher, k=1)
        (tensor(0.0190), tensor(0.))
    """
    _check_tokens(student, teacher, "token_local_loss")
    mask = neighbour_mask(teacher, k)
    log_s, log_t = (
        ((-_squared_distances(upcast(t)) / (2 * sigma)).exp() * mask / temperature).log_softmax(dim=1)
        for t in (student, teacher)
    )
    return safe_mean((log_s.exp() * (log_s - log_t)).sum(dim=1))


def token_global_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE that picks each student token's own teacher token out of all of the batch.

    Zhang, Liu & He (2023): ``-mean_i log (exp(cos(s_i, t_i) / tau) / sum_j exp(cos(s_i, t_j) / tau))``. (The paper
    sums over i.)

    Args:
        student: projected tokens (N, D).
        teacher: the same tokens (N, D).
        temperature: tau > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no tokens or a single one.

    Example:
        >>> token_global_loss(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(0.3133)
    """
    check_same_shape(student, teacher, "token_global_loss")
    s, t = unit(upcast(student)), unit(upcast(teacher))
    with full_precision(s):
        similarity = s @ t.T / temperature
    return -safe_mean(similarity.log_softmax(dim=1).diagonal())


def token_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference between the similarities of the tokens inside each image.

    Zhang, Liu & He (2023): ``MSE(CS^T, CS^S)`` with ``CS = softmax(F F^T / sqrt(D))`` (B, L, L).

    Args:
        student: tokens by image (B, L, D_s).
        teacher: the same tokens (B, L, D_t).

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> token_context_loss(torch.eye(2)[None], torch.zeros(1, 2, 3))
        tensor(0.0288)
    """
    _check_tokens(student, teacher, "token_context_loss")
    with full_precision(student):
        cs_s, cs_t = (
            (f @ f.mT / max(f.shape[-1], 1) ** 0.5).softmax(dim=-1) for f in (upcast(student), upcast(teacher))
        )
    return safe_mean((cs_s - cs_t).square())


def _check_tokens(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape[:-1] != teacher.shape[:-1]:
        raise KDBenchError(
            f"{what}: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}, "
            "expected the same tokens; pool both to a common grid"
        )
