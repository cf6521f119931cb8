from __future__ import annotations

import pytest
import torch

from kdbench.functional.dkd import nckd_loss, tckd_loss
from kdbench.methods.dkd import DKD
from tests.methods.harness import normal
from tests.methods.softmax import LabelledInvariants, Weighed


class TestDKD(LabelledInvariants):
    name, method, made_by = "dkd", DKD, Weighed
    other = {"temperature": 2.0}

    def test_is_the_loss_of_the_rows_and_zero_at_the_teacher(self):
        made = self.bench()
        rows = (made.student[0], made.teacher[0], torch.arange(6) % 5, 4.0)
        expected = tckd_loss(*rows) + 8 * nckd_loss(*rows)
        assert made.loss().item() == pytest.approx(expected.item())
        assert self.at_the_teacher(normal(4, 5)) == pytest.approx(0, abs=1e-5)

    def test_masked_rows_do_not_count_and_weights_do(self):
        made, rows, weight = self.masked()
        terms = made.terms()
        assert terms["tckd"].item() == pytest.approx(tckd_loss(*rows, weight=weight).item(), rel=1e-5)
        assert terms["nckd"].item() == pytest.approx(nckd_loss(*rows, weight=weight).item(), rel=1e-5)
        grad = made.gradients()["student.0"]
        assert grad[0, :2].all()
        assert not grad[0, 2].any()
        assert not grad[1].any()
