from __future__ import annotations

from functools import partial

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.jsd import jsd_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.rkl import reverse_kl_loss
from tests.functional.laws import check, kl, logits


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("normalise", [False, True])
def test_matches_the_equation(beta, normalise):
    def pair(p, q):
        m = beta * p + (1 - beta) * q
        return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta) if normalise else 1)

    check(partial(jsd_loss, beta=beta, normalise=normalise), pair)


def test_the_ends_are_the_two_divergences():
    student, teacher, _ = logits(4, 6)
    for normalise in (False, True):
        ends = [jsd_loss(student, teacher, beta, normalise=normalise) for beta in (0.0, 1.0)]
        torch.testing.assert_close(ends[0], kd_loss(student, teacher, 1.0))
        torch.testing.assert_close(ends[1], reverse_kl_loss(student, teacher))
    for near, end in ((1e-5, 0.0), (1 - 1e-5, 1.0)):
        found = jsd_loss(student, teacher, near, normalise=True), jsd_loss(student, teacher, end)
        torch.testing.assert_close(*found, rtol=1e-3, atol=0)
        assert jsd_loss(student, teacher, near) < 1e-3 * found[1]


def test_it_is_bounded_and_even_in_the_middle():
    student, teacher = torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])
    assert jsd_loss(student, teacher).item() == pytest.approx(0.6931, abs=1e-4)
    one, other, _ = logits(3, 5)
    torch.testing.assert_close(jsd_loss(one, other), jsd_loss(other, one))


def test_a_share_outside_is_one_line():
    with pytest.raises(KDBenchError, match="jsd_loss: beta=1.5, expected a number from 0 to 1"):
        jsd_loss(torch.zeros(1, 2), torch.zeros(1, 2), 1.5)
