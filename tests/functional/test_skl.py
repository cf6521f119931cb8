from __future__ import annotations

from functools import partial

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.kd import kd_loss
from kdbench.functional.rkl import reverse_kl_loss
from kdbench.functional.skl import skew_kl_loss, skew_reverse_kl_loss
from tests.functional.laws import check, kl, logits


@pytest.mark.parametrize("skew", [0.0, 0.1, 0.7])
def test_match_the_equations(skew):
    check(partial(skew_kl_loss, skew=skew), lambda p, q: kl(p, skew * p + (1 - skew) * q))
    check(partial(skew_reverse_kl_loss, skew=skew), lambda p, q: kl(q, (1 - skew) * p + skew * q))


def test_without_a_skew_they_are_the_two_divergences():
    student, teacher, _ = logits(4, 6)
    torch.testing.assert_close(skew_kl_loss(student, teacher, 0.0), kd_loss(student, teacher, 1.0))
    torch.testing.assert_close(skew_reverse_kl_loss(student, teacher, 0.0), reverse_kl_loss(student, teacher))


def test_a_student_without_any_probability_is_bounded():
    student, teacher = torch.tensor([[90.0, -90.0]]), torch.tensor([[-90.0, 90.0]])
    assert kd_loss(student, teacher, 1.0) > 100
    assert skew_kl_loss(student, teacher, 0.1).item() == pytest.approx(2.3026, abs=1e-3)


@pytest.mark.parametrize("loss", [skew_kl_loss, skew_reverse_kl_loss])
def test_a_skew_outside_is_one_line(loss):
    with pytest.raises(KDBenchError, match=rf"{loss.__name__}: skew=1, expected a number from 0 to below 1"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2), 1.0)
