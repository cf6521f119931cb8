"""Cross-image relations: how alike the places of all images of a batch are, and of a memory of many."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import full_precision, in_chunks, safe_mean, unit, upcast

#: Similarities (rows, columns) that are held at a time.
_CHUNK = 2**24


def cross_image_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Similarities of every place to the places of every image of the batch.

    Yang, Zhou, An, Jiang, Xu & Zhang, Cross-Image Relational Knowledge Distillation (CVPR 2022), mini-batch term:
    ``mean_{i, p, j} KL(softmax_q(<t_ip, t_jq> / T) || softmax_q(<s_ip, s_jq> / T))`` for images i, j, their places p,
    q and features of unit length. Places are worked off in chunks.

    Args:
        student: (B, C_s, *space).
        teacher: (B, C_t, *space).
        temperature: T > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples.

    Raises:
        KDBenchError: samples or spatial sizes differ.

    Example:
        >>> cross_image_loss(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.ones(1, 1, 2), temperature=1.0)
        tensor(0.1201)
    """
    if student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise KDBenchError(
            f"cross_image_loss: the student has shape {tuple(student.shape)} and the teacher {tuple(teacher.shape)}, "
            "expected (B, C, *space) of one size"
        )
    s, t = (unit(upcast(feature).flatten(2)) for feature in (student, teacher))
    rows = tuple(f.transpose(1, 2).flatten(0, 1) for f in (s, t))

    def divergences(rows_s: Tensor, rows_t: Tensor) -> Tensor:
        with full_precision(rows_s):
            like_s, like_t = (rows_s @ s).flatten(0, 1), (rows_t @ t).flatten(0, 1)
        return categorical_kl(like_s, like_t, temperature).view(len(s), len(rows_s)).T

    return safe_mean(in_chunks(divergences, rows, _CHUNK // max(1, len(rows[0]))))


def memory_loss(student: Tensor, teacher: Tensor, memory: Tensor, temperature: float = 0.1) -> Tensor:
    """Similarities of places to a memory of the teacher's embeddings, as distributions over its entries.

    Yang et al. (CVPR 2022), memory-based terms: ``mean_n KL(softmax_k(<t_n, m_k> / T) || softmax_k(<s_n, m_k> / T))``.
    Rows are worked off in chunks.

    Args:
        student: embeddings of unit length (N, D).
        teacher: likewise (N, D).
        memory: (K, D), on no graph.
        temperature: T > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> memory_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.eye(2), 1.0)
        tensor(0.4621)
    """
    student, teacher = upcast(student), upcast(teacher)

    def divergences(rows_s: Tensor, rows_t: Tensor) -> Tensor:
        with full_precision(rows_s):
            entries = memory.to(rows_s.dtype).T
            like_s, like_t = rows_s @ entries, rows_t @ entries
        return categorical_kl(like_s, like_t, temperature)

    return safe_mean(in_chunks(divergences, (student, teacher), _CHUNK // max(1, len(memory))))


def draw_places(allowed: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws up to ``count`` of the allowed places of each row, each at most once.

    Args:
        allowed: bool (B, K, N).
        count: at most N are drawn.
        generator: on the processor.

    Returns:
        Places (B, K, count) and which of them are allowed, bool (B, K, count): the others are there because a row has
        too few.

    Example:
        >>> places, there = draw_places(torch.tensor([[[False, True, False]]]), 2, torch.Generator().manual_seed(0))
        >>> places[there], there
        (tensor([1]), tensor([[[ True, False]]]))
    """
    order = torch.rand(allowed.shape, generator=generator).to(allowed.device).masked_fill(~allowed, 2.0)
    places = order.topk(min(count, allowed.shape[-1]), dim=-1, largest=False).indices
    return places, allowed.gather(-1, places)


def ring_places(start: Tensor, there: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Says where entries go in the rings of their classes, over the oldest.

    Args:
        start: where the next entry of each class goes (K,).
        there: which of M candidates are entries, bool (K, M), oldest first. Of more than ``size`` the newest stay.
        size: of a ring.

    Returns:
        Places (K, M), which candidates go there, bool (K, M), and the next starts (K,).

    Example:
        >>> ring_places(torch.tensor([2]), torch.tensor([[True, False, True]]), 3)
        (tensor([[2, 2, 0]]), tensor([[ True, False,  True]]), tensor([1]))
    """
    rank, total = there.cumsum(1) - 1, there.sum(1)
    kept = there & (rank >= total[:, None] - size)
    return (start[:, None] + rank) % size, kept, (start + total) % size
