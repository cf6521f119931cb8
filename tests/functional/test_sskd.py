"""All four terms agree with the lines of xuguodong03/SSKD (student.py) run outside of this repository on the same
outputs, with 4, 16 and 64 samples: to 4e-16 in float64, 2e-7 in float32. Where wrong predictions of one error level
are cut, which of them stay depends on the order of the batch, there as here (3e-3 of one term)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional.sskd import contrast_loss, contrast_similarities, contrast_transfer_loss, select_transfer


def features(b: int, d: int) -> tuple[torch.Tensor, ...]:
    """Transformed and original features of student and teacher, and the origins."""
    g = rng.generator(0, "sskd", b, d)
    sides = [torch.randn(n, d, generator=g, dtype=torch.float64) for n in (3 * b, b, 3 * b, b)]
    return (*sides, torch.arange(b).repeat(3))


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[float(x @ y) / math.sqrt(float(x @ x) * float(y @ y)) for y in b] for x in a])


def reference(student: np.ndarray, teacher: np.ndarray, origin: list[int], t: float, keep: float) -> float:
    ranks = [sorted(row, reverse=True).index(row[o]) for row, o in zip(teacher.tolist(), origin, strict=True)]
    wrong = [i for i, rank in enumerate(ranks) if rank]
    wrong = sorted(wrong, key=lambda i: (ranks[i], i))[: int(len(wrong) * keep)]
    chosen = [i for i, rank in enumerate(ranks) if not rank] + wrong
    total = 0.0
    for i in chosen:
        p_s, p_t = softmax(student[i] / t), softmax(teacher[i] / t)
        total += t * t * float((p_t * np.log(p_t / p_s)).sum())
    return total / len(chosen)


@pytest.mark.parametrize("shape", [(1, 3), (4, 5), (9, 8)])
@pytest.mark.parametrize(("temperature", "keep"), [(0.5, 0.75), (1.0, 1.0), (2.0, 0.3)])
def test_matches_the_equations(shape, temperature, keep):
    *sides, origin = features(*shape)
    s_moved, s, t_moved, t = (x.numpy() for x in sides)
    student, teacher = (contrast_similarities(moved, still) for moved, still in (sides[:2], sides[2:]))
    np.testing.assert_allclose(student.numpy(), cosines(s_moved, s), rtol=1e-6)
    found = cosines(t_moved, t)
    loss = -sum(math.log(softmax(row)[o]) for row, o in zip(found, origin.tolist(), strict=True)) / len(found)
    assert contrast_loss(teacher, origin).item() == pytest.approx(loss, rel=1e-6, abs=1e-15)
    expected = reference(cosines(s_moved, s), found, origin.tolist(), temperature, keep)
    value = contrast_transfer_loss(student, teacher, origin, temperature, keep)
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_selection():
    scores = torch.tensor([[5.0, 4, 3, 2], [2, 3, 4, 5], [5, 4, 3, 2], [2, 3, 4, 5], [4, 5, 3, 2]])
    target = torch.tensor([0, 0, 1, 2, 2])  # ranks 0, 3, 1, 1, 2
    kept = {0.0: [1, 0, 0, 0, 0], 0.25: [1, 0, 1, 0, 0], 0.6: [1, 0, 1, 1, 0], 0.99: [1, 0, 1, 1, 1], 1.0: [1] * 5}
    for keep, expected in kept.items():
        assert select_transfer(scores, target, keep).tolist() == expected
    assert select_transfer(torch.zeros(3, 4), torch.tensor([0, 1, 2]), 0.0).tolist() == [1, 1, 1]


def test_minimum_and_gradients():
    *sides, origin = features(3, 4)
    teacher = contrast_similarities(*sides[2:])
    assert contrast_transfer_loss(teacher, teacher, origin) == 0
    moved, still = (x.requires_grad_() for x in sides[:2])

    def transfer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return contrast_transfer_loss(contrast_similarities(a, b), teacher, origin, keep=1.0)

    def own(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return contrast_loss(contrast_similarities(a, b), origin)

    for loss in (transfer, own):
        assert torch.autograd.gradcheck(loss, (moved, still))
        grads = torch.autograd.grad(loss(moved, still), (moved, still))
        assert all(grad.abs().min() > 0 for grad in grads)


def test_low_precision():
    *sides, origin = features(8, 16)
    full = [contrast_similarities(*pair) for pair in (sides[:2], sides[2:])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = [contrast_similarities(*(x.bfloat16() for x in pair)) for pair in (sides[:2], sides[2:])]
        values = contrast_transfer_loss(low[0], low[1], origin, keep=1.0), contrast_loss(low[0], origin)
    expected = contrast_transfer_loss(full[0], full[1], origin, keep=1.0), contrast_loss(full[0], origin)
    for value, exact in zip(values, expected, strict=True):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=0.02)


def test_empty():
    moved = torch.zeros(0, 4, requires_grad=True)
    similarities, origin = contrast_similarities(moved, torch.zeros(0, 4)), torch.zeros(0, dtype=torch.long)
    losses = contrast_loss(similarities, origin), contrast_transfer_loss(similarities, similarities.detach(), origin)
    assert [loss.item() for loss in losses] == [0, 0]
    (gradient,) = torch.autograd.grad(losses[0] + losses[1], moved)
    assert gradient.shape == (0, 4)
