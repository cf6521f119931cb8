from __future__ import annotations

import pytest
import torch

from kdbench.functional.divergence import gaussian_kl
from kdbench.functional.kd import kd_loss
from kdbench.functional.rkl import reverse_kl_loss
from tests.functional.laws import check, kl, logits


def test_matches_the_equation():
    check(reverse_kl_loss, lambda p, q: kl(q, p))


def test_is_distillation_with_the_laws_exchanged():
    student, teacher, weight = logits(5, 4)
    for law in ("categorical", "bernoulli", "plain"):
        value = reverse_kl_loss(student, teacher, 2.0, law=law, weight=weight)
        torch.testing.assert_close(value, kd_loss(teacher, student, 2.0, law=law, weight=weight))
    value = reverse_kl_loss(student, teacher, law="gaussian")
    torch.testing.assert_close(value, gaussian_kl(teacher, student).mean())


def test_leaving_out_is_cheap_and_making_up_is_dear():
    """A student that says one of two likely words is nearer than one that spreads over words that cannot be."""
    teacher = torch.tensor([[5.0, 5.0, -5.0]])
    picks, spreads = torch.tensor([[5.0, -5.0, -5.0]]), torch.zeros(1, 3)
    assert reverse_kl_loss(picks, teacher).item() == pytest.approx(0.693, abs=0.01)
    assert reverse_kl_loss(spreads, teacher) > 2
    assert kd_loss(picks, teacher, 1.0) > kd_loss(spreads, teacher, 1.0)
