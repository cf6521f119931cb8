"""Probabilistic knowledge transfer: how likely a sample picks each other one as its neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import Faithful, check_faithful, full_precision, safe_mean, upcast


def neighbour_probabilities(feature: Tensor, *, itself: bool = True, eps: float = 1e-7) -> Tensor:
    """Conditional probabilities of the cosine kernel, ``p_{j|i} = k_ij / sum_m k_im`` with ``k = (cos + 1) / 2``.

    Args:
        feature: (B, D).
        itself: False to leave out ``j = i``, whose probability is zero then.
        eps: added to the norms. A vector of zeros is similar to everything by half.

    Returns:
        (B, B), float32 for low-precision input.

    Example:
        >>> neighbour_probabilities(torch.eye(2))
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]])
    """
    feature = upcast(feature)
    norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
    # No gradient comes to a vector of zeros, where that of the norm would be divided by eps.
    unit = feature * torch.where(norm > 0, 1 / (norm + eps), 0.0)
    with full_precision(unit):
        kernel = (unit @ unit.T + 1) / 2
    if not itself:
        kernel = kernel * (1 - torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device))
    return kernel / kernel.sum(dim=1, keepdim=True).clamp_min(eps)


def pkt_loss(student: Tensor, teacher: Tensor, *, faithful: Faithful = "code", eps: float = 1e-7) -> Tensor:
    """Divergence of the neighbour probabilities, ``p_t log((p_t + eps) / (p_s + eps))``.

    Passalis & Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer (ECCV 2018), with the cosine
    kernel:

    * ``paper``: the divergences of all samples, summed; a sample is not its own neighbour.
    * ``code`` (the authors'): the mean over all B^2 pairs, a sample with itself included.

    Args:
        student: (B, D_s).
        teacher: (B, D_t).
        faithful: ``"paper"`` or ``"code"``.
        eps: keeps norms and logarithms finite.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Raises:
        KDBenchError: the features are not matrices of one batch size, or an option is unknown.

    Example:
        >>> pkt_loss(torch.eye(2), torch.ones(2, 3))
        tensor(0.0294)
    """
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0]:
        raise KDBenchError(
            f"pkt_loss: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}, "
            "expected (B, D) with one batch size"
        )
    check_faithful(faithful)
    itself = faithful == "code"
    p_s, p_t = (neighbour_probabilities(feature, itself=itself, eps=eps) for feature in (student, teacher))
    divergence = p_t * ((p_t + eps) / (p_s + eps)).log()
    return safe_mean(divergence) if faithful == "code" else divergence.sum()
