from __future__ import annotations

import pytest
import torch

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.functional.ab import activation_boundary_loss
from kdbench.methods.ab import AB
from tests.methods.harness import normal
from tests.methods.levels import PAIR, Active, LevelInvariants, activated, check_init_then_distil
from tests.toy import Toy


class TestAB(LevelInvariants):
    name, method, task = "ab", AB, Active
    feature = staticmethod(activated)
    other = {"margin": 0.5}
    apart = ("init_epochs",)
    autocast = True

    def test_needs_what_was_before_the_activation(self):
        with pytest.raises(KDBenchError, match="AB needs Activated"):
            bind(AB, Toy, PAIR)

    def test_the_first_stage_is_as_long_as_configured(self):
        assert self.bench(init_epochs=0.5).method.stages()[0].epochs == 0.5

    def test_deeper_levels_weigh_twice_as_much(self):
        made = self.bench()
        early, late = (c(s) for c, s in zip(made.method.connectors, made.student, strict=True))
        late = torch.nn.functional.adaptive_avg_pool2d(late, (2, 4))
        levels = [activation_boundary_loss(s, t) for s, t in zip((early, late), made.teacher, strict=True)]
        assert made.loss().item() == pytest.approx((levels[0] / 2 + levels[1]).item(), rel=1e-6)

    def test_zero_where_the_connector_is_beyond_the_margin(self):
        values = normal(4, 3, 5, 5).sign()
        made = self.one_level(values, values.clone())
        with torch.no_grad():
            made.method.connectors[0][0].weight.copy_(torch.eye(3)[:, :, None, None])
            made.method.connectors[0][1].weight.fill_(3.0)
        assert made.loss() == 0

    def test_stages_train_what_they_should(self, tmp_path):
        check_init_then_distil("ab", Active(), tmp_path)

    def test_bad_options_are_one_line(self):
        with pytest.raises(KDBenchError, match=r"method.margin: found 0.0; input should be greater than 0"):
            self.bench(margin=0.0)
