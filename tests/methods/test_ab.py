from __future__ import annotations

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.functional.ab import activation_boundary_loss
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.ab import AB
from tests.methods.harness import normal
from tests.methods.levels import PAIR, Active, LevelInvariants, activated, check_init_then_distil
from tests.toy import Toy


class TestAB(LevelInvariants):
    name, method, task = "ab", AB, Active
    feature = staticmethod(activated)
    other = {"margin": 0.5, "faithful": "paper"}
    apart = ("init_epochs",)
    variants = ({}, {"faithful": "paper"})
    autocast = True

    def test_needs_what_was_before_the_activation(self):
        with pytest.raises(KDBenchError, match="AB needs Activated"):
            bind(AB, Toy, PAIR)

    def test_the_first_stage_is_as_long_as_configured(self):
        assert self.bench(init_epochs=0.5).method.stages()[0].epochs == 0.5

    def test_deeper_levels_weigh_twice_as_much(self):
        made = self.bench(faithful="paper")
        early, late = (c(s) for c, s in zip(made.method.connectors, made.student, strict=True))
        late = torch.nn.functional.adaptive_avg_pool2d(late, (2, 4))
        levels = [activation_boundary_loss(s, t) for s, t in zip((early, late), made.teacher, strict=True)]
        assert made.loss().item() == pytest.approx((levels[0] / 2 + levels[1]).item(), rel=1e-6)

    @pytest.mark.parametrize(
        ("student", "teacher", "code", "paper"),
        [
            ((4, 6, 5), (4, 6, 5), None, None),
            ((4, 8, 6), (4, 4, 3), (3, 3), None),
            ((4, 4, 3), (4, 8, 6), (4, 4), None),
            ((3, 6, 5), (4, 6, 5), (1, 1), (1, 1)),
            ((3, 8, 6), (4, 4, 3), (3, 3), (1, 1)),
        ],
    )
    def test_no_connector_where_the_student_can_do_without(self, student, teacher, code, paper):
        """None where shapes agree, by the authors' rule where widths agree: it would fall away with the boundaries."""
        for faithful, kernel in (("code", code), ("paper", paper)):
            values = normal(4, *student, name="s"), normal(4, *teacher, name="t")
            made = self.one_level(*values, faithful=faithful)
            found, shown = made.method.connectors[0], made.student[0]
            if kernel is None:
                assert not made.trainable()
            else:
                assert found[0].kernel_size == kernel
                assert len(found) == 2, "nothing follows the normalisation: boundaries lie before the activation"
                shown = found(shown)
            shown, wanted = pool_to_smaller(shown, made.teacher[0])
            expected = activation_boundary_loss(shown, wanted)
            assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)

    def test_zero_where_the_student_is_beyond_the_margin(self):
        values = normal(4, 3, 5, 5).sign()
        made = self.one_level(1.5 * values, values.clone())
        assert made.loss() == 0

    def test_stages_train_what_they_should(self, tmp_path):
        check_init_then_distil("ab", Active(), tmp_path)

    def test_bad_options_are_one_line(self):
        with pytest.raises(KDBenchError, match=r"method.margin: found 0.0; input should be greater than 0"):
            self.bench(margin=0.0)
