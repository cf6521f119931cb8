from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.ofd import gaussian_margin, partial_distance
from kdbench.methods.ofd import OFD
from kdbench.needs import State
from tests.methods.harness import normal
from tests.methods.levels import Active, LevelInvariants, activated


class TestOFD(LevelInvariants):
    name, method, task = "ofd", OFD, Active
    feature = staticmethod(activated)
    other = {"margin": "measured"}
    variants = ({}, {"margin": "measured"})
    autocast = True

    def test_deeper_levels_weigh_twice_as_much(self):
        made = self.bench()
        early, late = (c(s) for c, s in zip(made.method.connectors, made.student, strict=True))
        late = torch.nn.functional.adaptive_avg_pool2d(late, (2, 4))
        levels = [
            partial_distance(s, t, made.method.margins(i))
            for i, (s, t) in enumerate(zip((early, late), made.teacher, strict=True))
        ]
        assert made.loss().item() == pytest.approx((levels[0] / 2 + levels[1]).item(), rel=1e-6)

    def test_margins_are_those_of_each_channel(self):
        x = self.bench().teacher[0].detach().transpose(0, 1).flatten(1)
        expected = gaussian_margin(x.mean(1), x.std(1, correction=0))
        torch.testing.assert_close(self.bench().method.margins(0), expected, rtol=1e-4, atol=1e-6)
        expected = torch.stack([row[row < 0].mean() for row in x])
        torch.testing.assert_close(self.bench(margin="measured").method.margins(0), expected)

    def test_margin_of_a_channel_that_is_never_negative(self):
        values = normal(2, 3, 4, 4).abs() + 9
        assert not self.one_level(values, values.clone(), margin="measured").method.margins(0).any()
        assert (self.one_level(values, values.clone()).method.margins(0) < 0).all()

    @pytest.mark.parametrize("margin", ["gaussian", "measured"])
    def test_margins_are_averaged_over_batches_and_are_in_the_checkpoint(self, margin):
        made = self.bench(margin=margin)
        first = made.teacher[0].detach().clone()
        loss = made.loss()
        for factor in (2.0, 3.0):
            with torch.no_grad():
                made.teacher[0].copy_(factor * first)
            made.method.after_step(made.signals(), State(0, 0, 0.0))
        seen = torch.cat([first, 2 * first, 3 * first]).transpose(0, 1).flatten(1)
        if margin == "gaussian":
            expected = gaussian_margin(seen.mean(1), seen.std(1, correction=0))
        else:
            expected = torch.stack([row[row < 0].mean() for row in seen])
        torch.testing.assert_close(made.method.margins(0), expected, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            made.teacher[0].copy_(first)
        assert made.loss() != loss
        other = self.bench(margin=margin)
        other.method.load_state_dict(made.method.state_dict())
        torch.testing.assert_close(other.method.margins(0), made.method.margins(0))

    def test_zero_where_the_connector_gives_the_teachers_response(self):
        values = normal(4, 3, 5, 5)
        made = self.one_level(values, values.clone())
        with torch.no_grad():
            made.method.connectors[0][0].weight.copy_(torch.eye(3)[:, :, None, None])
            std, mean = torch.std_mean(values, (0, 2, 3), correction=0)
            made.method.connectors[0][1].weight.copy_(std)
            made.method.connectors[0][1].bias.copy_(mean)
        assert made.loss().item() == pytest.approx(0, abs=1e-6)

    def test_bad_options_are_one_line(self):
        with pytest.raises(KDBenchError, match=r"method.margin: found 'bn'; input should be 'gaussian' or 'measured'"):
            self.bench(margin="bn")
