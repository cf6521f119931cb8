from __future__ import annotations

import pytest

from kdbench.errors import KDBenchError
from kdbench.functional.at import attention_transfer_loss
from kdbench.methods.at import AT
from tests.methods.harness import normal
from tests.methods.levels import LevelInvariants


class TestAT(LevelInvariants):
    name, method = "at", AT
    other = {"p": 1.0, "faithful": "paper"}
    variants = ({}, {"faithful": "paper", "p": 1.5})

    @pytest.mark.parametrize("faithful", ["code", "paper"])
    def test_is_the_sum_over_the_levels(self, faithful):
        made = self.bench(faithful=faithful)
        levels = [
            attention_transfer_loss(s, t, faithful=faithful) for s, t in zip(made.student, made.teacher, strict=True)
        ]
        assert made.loss().item() == pytest.approx(sum(level.item() for level in levels), rel=1e-6)

    @pytest.mark.parametrize("faithful", ["code", "paper"])
    def test_minimum_where_student_and_teacher_look_alike(self, faithful):
        values = normal(2, 4, 3, 3)
        made = self.one_level(values, 3 * values, faithful=faithful)
        assert made.loss().item() == pytest.approx(0, abs=1e-6)
        assert made.gradients()["student.0"].isfinite().all()

    def test_bad_options_are_one_line(self):
        with pytest.raises(KDBenchError, match=r"method.p: found 0.5; input should be greater than or equal to 1"):
            self.bench(p=0.5)
        with pytest.raises(KDBenchError, match=r"method.faithful: found 'both'; input should be 'paper' or 'code'"):
            self.bench(faithful="both")
