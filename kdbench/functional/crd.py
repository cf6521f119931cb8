"""Contrastive representation distillation: noise-contrastive estimation against memory banks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdbench.functional.numerics import full_precision, safe_mean, upcast

#: Similarities (rows, N) that are held at a time.
_CHUNK = 2**24


def draw_negatives(classes: Tensor, ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws samples of other classes, uniformly and with replacement, on the device of ``classes``.

    A sample of unknown class draws from all others; so does one whose class fills the whole set.

    Args:
        classes: class of every sample of the set (N,), -1 where unknown.
        ids: samples that want negatives (B,), in 0 .. N - 1.
        count: negatives a sample; 0 where N is 1.
        generator: of the device of ``classes``.

    Returns:
        Sample ids (B, count).

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> draw_negatives(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 3]), 3, g)
        tensor([[2, 2, 2],
                [2, 2, 2]])
    """
    size, own = len(classes), classes[ids]
    ranked, order = classes.sort(stable=True)
    # In the order of classes, what must not be drawn is one range: the class of the sample, or the sample alone.
    start, stop = torch.searchsorted(ranked, own), torch.searchsorted(ranked, own, right=True)
    alone = (own < 0) | (stop - start == size)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(size, device=order.device))[ids]
    start, barred = torch.where(alone, place, start), torch.where(alone, 1, stop - start)
    # The bias of a remainder of 62 bits is nil.
    drawn = torch.randint(2**62, (len(ids), count), generator=generator, device=classes.device)
    drawn = drawn % (size - barred).clamp_min(1)[:, None]
    return order[drawn + barred[:, None] * (drawn >= start[:, None])]


def contrast_logits(embedding: Tensor, bank: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    """Similarities of embeddings to entries of a memory bank, ``<v_b, bank[index_bk]> / temperature``.

    The embeddings meet the whole bank in one matrix product, of which the entries are picked: the (B, K, D) tensor of
    picked entries is never made. Rows are worked off in chunks, which are computed again in backward where there are
    several.

    Args:
        embedding: (B, D).
        bank: (N, D), on no graph; any floating dtype.
        index: (B, K), in 0 .. N - 1.
        temperature: > 0.

    Returns:
        (B, K), float32 for low-precision embeddings.

    Example:
        >>> contrast_logits(torch.ones(1, 2), torch.eye(2), torch.tensor([[1, 1, 0]]), temperature=0.5)
        tensor([[2., 2., 2.]])
    """
    embedding = upcast(embedding) / temperature
    step = max(1, _CHUNK // max(1, len(bank)))
    if step >= len(embedding):
        return _picked(embedding, bank, index)
    rows = zip(embedding.split(step), index.split(step), strict=True)
    return torch.cat([checkpoint(_picked, e, bank, i, use_reentrant=False, preserve_rng_state=False) for e, i in rows])


def _picked(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    with full_precision(embedding):
        return (embedding @ bank.to(embedding.dtype).T).gather(1, index)


def log_normalizer(logits: Tensor, size: int) -> Tensor:
    """Estimates the log of the constant Z from one batch, ``log(N mean exp(logits))``, off the graph.

    Tian et al. (ICLR 2020) after Wu et al. (CVPR 2018): it is estimated once and kept.

    Args:
        logits: of :func:`contrast_logits`, (B, 1 + K), at least one row.
        size: N, the number of samples in the bank.

    Returns:
        A scalar, without gradient.

    Example:
        >>> log_normalizer(torch.zeros(2, 3), 10)
        tensor(2.3026)
    """
    logits = logits.detach()
    return logits.flatten().logsumexp(0) + math.log(size / max(1, logits.numel()))


def nce_loss(logits: Tensor, size: int, eps: float = 1e-7) -> Tensor:
    """Noise-contrastive estimation of one positive among K negatives, summed over them and averaged over rows.

    Tian et al., Contrastive Representation Distillation (ICLR 2020), eq. 18 with the estimator of their code:
    ``-log P / (P + K/N + eps) - sum_k log (K/N) / (P_k + K/N + eps)`` with ``P = exp(logits)``.

    Args:
        logits: log of the normalised scores (B, 1 + K), the positive first.
        size: N, the number of samples that the noise is uniform over.
        eps: as in the authors' code.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> nce_loss(torch.tensor([[0.0, 0.0, 0.0]]), size=2)
        tensor(2.0794)
    """
    logits = upcast(logits)
    noise = (logits.shape[1] - 1) / size
    # By softplus: thousands of terms near zero are summed, which the logarithm of a ratio near one would not keep.
    positive = F.softplus(math.log(noise + eps) - logits[:, 0])
    negative = F.softplus(logits[:, 1:] - math.log(noise + eps)) + math.log1p(eps / noise) if noise else logits[:, 1:]
    return safe_mean(positive + negative.sum(dim=1))


def momentum_update(entries: Tensor, embedding: Tensor, momentum: float = 0.5) -> Tensor:
    """Moves entries of a bank towards embeddings and scales them to unit length.

    Args:
        entries: (B, D).
        embedding: (B, D).
        momentum: share of the old entry, in [0, 1).

    Returns:
        The new entries (B, D), float32 for low-precision input.

    Example:
        >>> momentum_update(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    return F.normalize(momentum * upcast(entries) + (1 - momentum) * upcast(embedding), dim=1)
