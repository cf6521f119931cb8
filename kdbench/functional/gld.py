"""Graphs on logits: which classes are likely together over the rows of a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import upcast, weighted_mean


def coactivation(logits: Tensor, sample: Tensor, samples: int, top: int = 10) -> Tensor:
    """Returns how strongly each class is active together with all others over the rows of each sample.

    With the ``top`` largest centred logits of each row, zeros in place of the others, ``C = sum_n z_n z_n'`` is the
    graph of a sample; this is the mean of each row of ``C`` over its rows and over ``top``, without forming ``C``.

    Args:
        logits: (N, C).
        sample: which sample each row is of (N,), integers below ``samples``.
        samples: B, how many there are.
        top: logits of a row that count.

    Returns:
        (B, C), zero where a sample has no row.

    Example:
        >>> coactivation(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0]), 1, top=1)
        tensor([[4., 0., 0.]])
    """
    z = upcast(logits)
    z = z - z.mean(1, keepdim=True)
    kept = min(top, z.shape[1])
    largest = z.topk(kept, 1)
    z = torch.zeros_like(z).scatter(1, largest.indices, largest.values)
    shares = z * z.sum(1, keepdim=True) / max(kept, 1)
    count = torch.bincount(sample, minlength=samples).clamp(min=1)
    total = shares.new_zeros(samples, shares.shape[1]).index_add(0, sample, shares)
    return total / count[:, None]


def graph_logits_loss(
    student: Tensor,
    teacher: Tensor,
    student_sample: Tensor,
    teacher_sample: Tensor,
    samples: int,
    top: int = 10,
) -> Tensor:
    """``mean_b mean_i (f_s(i) - f_t(i))^2`` over ranks i, where f are the sorted rows of :func:`coactivation`.

    After Wang et al., InfiGFusion (NeurIPS 2025): the Gromov-Wasserstein distance of the two graphs, approximated by
    sorting a feature of each node, here the mean of its edges; for that feature it is a lower bound. Equations and
    constants of the paper could not be read. A graph of fewer classes is padded by classes without edges.

    Args:
        student: logits (N, C).
        teacher: logits (M, K).
        student_sample: sample of each row of the student (N,).
        teacher_sample: sample of each row of the teacher (M,).
        samples: B, how many there are; those without a row of either count nothing.
        top: logits of a row that count.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> sample = torch.tensor([0])
        >>> graph_logits_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]]), sample, sample, 1)
        tensor(0.)
    """
    widest = max(student.shape[1], teacher.shape[1])
    ranked = []
    for logits, sample in ((student, student_sample), (teacher, teacher_sample)):
        node = F.pad(coactivation(logits, sample, samples, top), (0, widest - logits.shape[1]))
        ranked.append(node.sort(1, descending=True).values)
    there = [torch.bincount(sample, minlength=samples) > 0 for sample in (student_sample, teacher_sample)]
    apart = (ranked[0] - ranked[1]).square().mean(1) if widest else ranked[0].sum(1)
    return weighted_mean(apart, (there[0] & there[1]).to(apart.dtype))
