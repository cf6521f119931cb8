from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.mi_alpha import mutual_information_loss
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero


def seen(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = rng.generator(0, "mi_alpha", n, d)
    student, teacher = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_matches_the_equation(alpha, learned):
    student, teacher, log_q = seen(5, 3)
    baseline = log_q if learned else None
    angle = F.cosine_similarity(student[:, None], teacher[None], dim=2)
    raised = (angle / 0.3).exp().tolist()
    bound = 1.0
    for j in range(5):
        q = math.exp(log_q[j].item()) if learned else 1.0
        m = sum(raised[i][j] for i in range(5)) / 5
        others = sum(raised[i][j] for i in range(5) if i != j) / 4
        bound += math.log(raised[j][j] / (alpha * m + (1 - alpha) * q)) / 5
        bound -= others / (alpha * others + (1 - alpha) * q) / 5
    found = mutual_information_loss(student, teacher, alpha, 0.3, baseline)
    assert found.item() == pytest.approx(-bound, rel=1e-9)


def test_at_one_it_is_infonce():
    student, teacher, _ = seen(6, 4)
    logits = F.normalize(teacher) @ F.normalize(student).T / 0.1
    infonce = F.cross_entropy(logits, torch.arange(6)) - math.log(6)
    torch.testing.assert_close(mutual_information_loss(student, teacher, 1.0), infonce)


def test_it_stays_below_the_information_that_there_is():
    """Of two normal variables of correlation r there are -log(1 - r^2) / 2 nats."""
    g = rng.generator(0, "mi_alpha", "normal")
    x = torch.randn(2000, 1, generator=g)
    y = 0.9 * x + (1 - 0.81) ** 0.5 * torch.randn(2000, 1, generator=g)
    # Points on a circle by their value, so that the cosine falls with the distance.
    on = [torch.cat([(v / 2).cos(), (v / 2).sin()], 1) for v in (x, y)]
    for alpha in (0.5, 1.0):
        bound = -mutual_information_loss(on[0], on[1], alpha, 0.1).item()
        assert 0.3 < bound < -math.log(1 - 0.81) / 2
    assert mutual_information_loss(on[0], on[1].roll(1, 0), 1.0) > 0


def test_gradients_precision_and_edges():
    student, teacher, log_q = seen(4, 3)
    leaf = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mutual_information_loss(s, teacher, 0.5, 0.5, log_q), (leaf,))
    check_low_precision(mutual_information_loss, *seen(32, 16)[:2], temperature=0.5, rel=0.1)
    check_autocast(mutual_information_loss, *seen(8, 5)[:2])
    check_empty(mutual_information_loss, (0, 5), (0, 5))
    check_zero(mutual_information_loss, torch.ones(1, 5), torch.ones(1, 5))
    with pytest.raises(KDBenchError, match="mutual_information_loss: the student has shape"):
        mutual_information_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(KDBenchError, match="alpha=0 and temperature=0.1, expected a number above 0"):
        mutual_information_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)
