from __future__ import annotations

import pytest

from kdbench.functional.dist import inter_class_loss, intra_class_loss
from kdbench.methods.dist import DIST
from tests.methods.harness import normal
from tests.methods.softmax import SoftmaxInvariants, Weighed


class TestDIST(SoftmaxInvariants):
    name, method, made_by = "dist", DIST, Weighed
    other = {"temperature": 2.0}

    def test_is_the_loss_of_the_rows_and_zero_at_the_teacher(self):
        made = self.bench()
        rows = (made.student[0], made.teacher[0], 4.0)
        expected = 2 * inter_class_loss(*rows) + 2 * intra_class_loss(*rows)
        assert made.loss().item() == pytest.approx(expected.item())
        assert self.at_the_teacher(3 * normal(4, 5)) == pytest.approx(0, abs=1e-3)

    def test_masked_rows_do_not_count_and_weights_do(self):
        """Weights count in the relation between classes alone: the other one is over all rows that are not masked."""
        made, rows, weight = self.masked()
        terms = made.terms()
        assert terms["inter"].item() == pytest.approx(inter_class_loss(*rows, weight=weight).item(), rel=1e-5)
        unmasked = [leaf[[0, 0, 1], [0, 1, 1]] for leaf in (*made.student, *made.teacher)]
        assert terms["intra"].item() == pytest.approx(intra_class_loss(*unmasked).item())
