from __future__ import annotations

import pytest

from kdbench.functional.kdsvd import kdsvd_loss
from kdbench.methods.kdsvd import KDSVD
from tests.methods.harness import check_gradients
from tests.methods.levels import ProjectedInvariants


class TestKDSVD(ProjectedInvariants):
    name, method = "kdsvd", KDSVD
    other = {"k": 2}
    apart = ("project",)
    variants = ({}, {"k": 2})

    def expected(self, student, teacher, **options):
        return kdsvd_loss(student, teacher, **options)

    def test_zero_at_the_teacher(self):
        assert self.at_the_teacher().item() == pytest.approx(0, abs=1e-10)

    def test_gradients_without_a_projection(self):
        check_gradients(self.equal(k=3))

    def test_low_precision(self):
        """Of the grids alone: the projections are in float32."""
        made, low = self.equal(), self.equal()
        for leaf in (*low.student, *low.teacher):
            leaf.data = leaf.data.bfloat16()
        assert low.loss().item() == pytest.approx(made.loss().item(), rel=0.05)
