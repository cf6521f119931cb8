from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.patient_kd import patience_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def states(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "patient_kd", n, d)
    student, teacher = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 2), (5, 7)])
def test_matches_the_equation(shape):
    student, teacher, weight = states(*shape)
    total = 0.0
    for s, t, w in zip(student.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        long = [math.sqrt(sum(x * x for x in row)) for row in (s, t)]
        total += w * sum((a / long[0] - b / long[1]) ** 2 for a, b in zip(s, t, strict=True))
    expected = total / weight.sum().item()
    assert patience_loss(student, teacher, weight=weight).item() == pytest.approx(expected, rel=1e-9)
    code = patience_loss(student, teacher, faithful="code", weight=weight)
    assert code.item() == pytest.approx(expected / shape[1], rel=1e-9)


def test_lengths_do_not_count():
    student, teacher, _ = states(4, 5)
    assert patience_loss(student, 3 * student).item() == pytest.approx(0, abs=1e-15)
    assert patience_loss(student, -student).item() == pytest.approx(4)
    torch.testing.assert_close(patience_loss(7 * student, teacher), patience_loss(student, teacher))


def test_gradients_precision_and_edges():
    student, teacher, weight = states(3, 4)
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: patience_loss(s, teacher, weight=weight), (leaf,))
    check_low_precision(patience_loss, *states(64, 32)[:2])
    check_autocast(patience_loss, *states(8, 5)[:2])
    check_empty(patience_loss, (0, 5), (0, 5))
    with pytest.raises(KDBenchError, match=r"patience_loss: the student has shape \(2, 3\) and the teacher \(2, 4\)"):
        patience_loss(torch.zeros(2, 3), torch.zeros(2, 4))
