from __future__ import annotations

import pytest

from kdbench.functional.nst import nst_loss
from kdbench.methods.nst import NST
from tests.methods.harness import normal
from tests.methods.levels import LevelInvariants


class TestNST(LevelInvariants):
    name, method = "nst", NST

    def test_is_the_sum_over_the_levels(self):
        made = self.bench()
        levels = [nst_loss(s, t) for s, t in zip(made.student, made.teacher, strict=True)]
        assert made.loss().item() == pytest.approx(sum(level.item() for level in levels), rel=1e-6)

    def test_zero_where_student_and_teacher_fire_alike(self):
        values = normal(2, 4, 3, 3)
        made = self.one_level(values, 3 * values.flip(1))
        assert made.loss().item() == pytest.approx(0, abs=1e-6)
        assert made.gradients()["student.0"].abs().max() < 1e-6
