from __future__ import annotations

import pytest

from kdbench.functional.skl import skew_kl_loss, skew_reverse_kl_loss
from kdbench.methods.skl import SKL
from tests.methods.laws import LawInvariants


class TestSKL(LawInvariants):
    name, method, loss = "skl", SKL, skew_kl_loss
    other = {"temperature": 2.0, "skew": 0.4, "reverse": True}

    def test_reverse_is_the_other_divergence(self):
        made = self.bench(reverse=True)
        assert made.loss().item() == pytest.approx(skew_reverse_kl_loss(made.student[0], made.teacher[0]).item())
