from __future__ import annotations

import pytest

from kdbench.features import Logits
from kdbench.functional.ttm import ttm_loss
from kdbench.methods.ttm import TTM
from tests.methods.harness import Bench, normal
from tests.methods.softmax import SoftmaxInvariants


class TestTTM(SoftmaxInvariants):
    name, method = "ttm", TTM
    other = {"exponent": 0.5, "weighted": True}
    variants = ({}, {"weighted": True})
    positive = "exponent"

    @pytest.mark.parametrize("weighted", [False, True])
    def test_is_the_loss_of_the_rows_and_zero_at_the_transformed_teacher(self, weighted):
        made = self.bench(weighted=weighted)
        expected = ttm_loss(made.student[0], made.teacher[0], 0.1, weighted=weighted)
        assert made.loss().item() == pytest.approx(expected.item())
        values = normal(4, 5)
        same = Bench("ttm", {"logits": Logits(0.1 * values)}, {"logits": Logits(values)}, weighted=weighted)
        assert same.loss().item() == pytest.approx(0, abs=1e-6)

    def test_masked_rows_do_not_count_and_weights_do(self):
        made, (student, teacher), weight = self.masked()
        assert made.loss().item() == pytest.approx(ttm_loss(student, teacher, weight=weight).item(), rel=1e-5)
