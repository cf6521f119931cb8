from __future__ import annotations

import pytest
import torch

from kdbench.functional.wsld import wsld_loss
from kdbench.methods.wsld import WSLD
from tests.methods.softmax import LabelledInvariants


class TestWSLD(LabelledInvariants):
    name, method = "wsld", WSLD
    other = {"temperature": 2.0}

    def test_is_the_loss_of_the_rows(self):
        made = self.bench()
        expected = wsld_loss(made.student[0], made.teacher[0], torch.arange(6) % 5, 4.0)
        assert made.loss().item() == pytest.approx(expected.item())

    def test_masked_rows_do_not_count_and_weights_do(self):
        made, rows, weight = self.masked()
        assert made.loss().item() == pytest.approx(wsld_loss(*rows, weight=weight).item(), rel=1e-5)
