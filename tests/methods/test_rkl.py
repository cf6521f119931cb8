from __future__ import annotations

import pytest

from kdbench.features import Values
from kdbench.functional.rkl import reverse_kl_loss
from kdbench.methods.rkl import RKL
from tests.methods.harness import Bench, normal
from tests.methods.laws import LawInvariants


class TestRKL(LawInvariants):
    name, method, loss = "rkl", RKL, reverse_kl_loss
    other = {"temperature": 2.0}

    def test_predicted_values_have_no_temperature(self):
        student, teacher = (Values(normal(4, 2, name=n)) for n in ("s", "t"))
        made = Bench("rkl", {"logits": student}, {"logits": teacher}, temperature=3.0)
        assert made.loss().item() == pytest.approx((student.values - teacher.values).square().sum(1).mean().item())
