from __future__ import annotations

import pytest
import torch

from kdbench.functional.nkd import nkd_non_target_loss, nkd_target_loss
from kdbench.methods.nkd import NKD
from tests.methods.softmax import LabelledInvariants, Weighed


class TestNKD(LabelledInvariants):
    name, method, made_by = "nkd", NKD, Weighed
    other = {"temperature": 2.0}

    def test_is_the_loss_of_the_rows(self):
        made = self.bench()
        rows = (made.student[0], made.teacher[0], torch.arange(6) % 5)
        expected = nkd_target_loss(*rows) + 1.5 * nkd_non_target_loss(*rows)
        assert made.loss().item() == pytest.approx(expected.item())

    def test_masked_rows_do_not_count_and_weights_do(self):
        made, rows, weight = self.masked()
        terms = made.terms()
        assert terms["target"].item() == pytest.approx(nkd_target_loss(*rows, weight=weight).item(), rel=1e-5)
        assert terms["non_target"].item() == pytest.approx(nkd_non_target_loss(*rows, weight=weight).item(), rel=1e-5)
