from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.self_guided import self_guided_loss
from tests.functional.checks import check_empty, check_low_precision


def logits(n: int, c: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "self_guided", n, c)
    student, teacher = (2 * torch.randn(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(n, generator=g, dtype=torch.float64)
    return student, torch.randint(c, (n,), generator=g), teacher, weight


@pytest.mark.parametrize("shape", [(1, 2), (4, 10), (9, 40)])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("taught", [False, True])
def test_the_deep_loss_matches_the_equation(shape, alpha, taught):
    student, labels, teacher, weight = logits(*shape)
    total = 0.0
    for s, y, t, w in zip(student.tolist(), labels.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, z)) for v in z] for z in (s, t))
        truth = sum((v - (k == y)) ** 2 for k, v in enumerate(p))
        guide = sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
        total += w * (alpha * truth + (1 - alpha) * guide if taught else truth)
    value = self_guided_loss(student, labels, teacher if taught else None, alpha, weight=weight)
    assert value.item() == pytest.approx(total / weight.sum().item(), rel=1e-6)


def test_the_deep_loss_has_the_minimum_of_the_mixed_target():
    """Its gradient is that of the squared distance to ``alpha y + (1 - alpha) p_t``."""
    student, labels, teacher, _ = logits(5, 4)
    student.requires_grad_()
    (mixed,) = torch.autograd.grad(self_guided_loss(student, labels, teacher, 0.3), student)
    target = 0.3 * torch.nn.functional.one_hot(labels, 4) + 0.7 * teacher.softmax(1)
    (plain,) = torch.autograd.grad((student.softmax(1) - target).square().sum(1).mean(), student)
    torch.testing.assert_close(mixed, plain)
    assert self_guided_loss(teacher, labels, teacher, alpha=0.0) == 0
    assert self_guided_loss(200.0 * torch.eye(4)[labels], labels).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda s: self_guided_loss(s, labels, teacher), (student,))


def test_low_precision_no_rows_and_errors():
    student, labels, teacher, weight = logits(64, 30)
    full = self_guided_loss(student, labels, teacher)
    check_low_precision(self_guided_loss, student, labels, teacher)
    assert self_guided_loss(student, labels, teacher, weight=weight) != full
    check_empty(self_guided_loss, (0, 5), labels[:0], (0, 5))
    with pytest.raises(KDBenchError, match="equal shapes"):
        self_guided_loss(student, labels, teacher[:, 1:])
