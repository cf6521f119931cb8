"""Forward and reverse KL, weighed by where the two laws differ."""

from __future__ import annotations

from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Law
from kdbench.functional.categorical import check_categorical
from kdbench.functional.laws import kl, log_laws, softened_mean
from kdbench.functional.numerics import Faithful, check_faithful


def head_share(student: Tensor, teacher: Tensor, head: float = 0.5, *, faithful: Faithful = "paper") -> Tensor:
    """Returns how much of the difference of two laws lies on the classes that the teacher is sure of.

    With ``g_c = |p_t,c - p_s,c|`` it is the sum of g over the head, the fewest classes whose probabilities by the
    teacher add up to at least ``head``, over the sum of all of g (Wu et al., Rethinking Kullback-Leibler Divergence in
    Knowledge Distillation for Large Language Models, COLING 2025). Where the laws are equal it is one half.

    Args:
        student: probabilities (N, C).
        teacher: probabilities (N, C).
        head: mass of the head, above 0 and below 1.
        faithful: ``"code"`` is what the release of TAID makes of it: as many classes as the head has, but the first
            ones in the order of the vocabulary.

    Returns:
        (N,), from 0 to 1.

    Raises:
        KDBenchError: the mass is out of range.

    Example:
        >>> import torch
        >>> head_share(torch.tensor([[0.2, 0.6, 0.2]]), torch.tensor([[0.3, 0.1, 0.6]]))
        tensor([0.4000])
    """
    check_faithful(faithful)
    if not 0 < head < 1:
        raise KDBenchError(f"head_share: head={head:g}, expected a number between 0 and 1")
    gaps = (teacher - student).abs()
    order = teacher.sort(dim=1, descending=True)
    inside = order.values.cumsum(1) - order.values < head
    if faithful == "paper":
        gaps = gaps.gather(1, order.indices)
    whole = gaps.sum(1)
    share: Tensor = (gaps * inside).sum(1) / whole.where(whole > 0, 1.0)
    return share.where(whole > 0, 0.5)


def adaptive_kl_loss(
    student: Tensor,
    teacher: Tensor,
    head: float = 0.5,
    temperature: float = 1.0,
    *,
    faithful: Faithful = "paper",
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """``T^2 * mean_n [w KL(p_t || p_s) + (1 - w) KL(p_s || p_t)]`` with ``w`` of :func:`head_share`, without gradient.

    Wu et al. (COLING 2025): early in training the forward KL moves the head of the law and the reverse one its tail.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        head: mass of the head, above 0 and below 1.
        temperature: T > 0.
        faithful: as of :func:`head_share`.
        law: ``"categorical"``; a sigmoid head has no head of its law.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: shapes differ, the head is a sigmoid's, or the mass is out of range.

    Example:
        >>> import torch
        >>> adaptive_kl_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))
        tensor(0.3808)
    """
    check_categorical(law, "AKL")
    log_s, log_t = log_laws(student, teacher, temperature, law, "adaptive_kl_loss")
    share = head_share(log_s.detach().exp(), log_t.detach().exp(), head, faithful=faithful)
    return softened_mean(share * kl(log_t, log_s) + (1 - share) * kl(log_s, log_t), temperature, weight)
