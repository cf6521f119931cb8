from __future__ import annotations

import pytest

from kdbench.functional.pkd import pearson_feature_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.pkd import PKD
from tests.methods.harness import normal, yaml
from tests.methods.levels import LevelInvariants


class TestPKD(LevelInvariants):
    name, method = "pkd", PKD
    other = {"faithful": "code"}
    variants = ({}, {"faithful": "code"})
    autocast = True

    @pytest.mark.parametrize("faithful", ["paper", "code"])
    def test_is_the_sum_over_the_levels(self, faithful):
        made = self.bench(faithful=faithful)
        expected = 0.0
        for project, s, t in zip(made.method.projectors, made.student, made.teacher, strict=True):
            expected += pearson_feature_loss(*pool_to_smaller(project(s), t), faithful).item()
        assert made.loss().item() == pytest.approx(expected, rel=1e-6)

    def test_equal_widths_need_no_projector(self):
        values = normal(2, 4, 3, 3)
        made = self.one_level(values, 3 * values + 1)
        assert not made.trainable()
        assert made.loss().item() == pytest.approx(0, abs=1e-6)
        assert made.gradients()["student.0"].isfinite().all()


def test_published_weight():
    assert yaml("pkd")["weights"] == {"task": 1.0, "pkd": 10.0}
