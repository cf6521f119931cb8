from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.functional.vid import vid_loss
from kdbench.methods.vid import VID
from tests.methods.levels import LevelInvariants


class TestVID(LevelInvariants):
    name, method = "vid", VID
    other = {"init_variance": 1.0, "eps": 0.1}
    autocast = True

    def test_the_gradient_reaches_the_variances(self):
        """A well-known reimplementation never trains them."""
        assert {n for n in self.bench().trainable() if "scale" in n} == {"scales.0", "scales.1"}

    def test_is_the_sum_over_the_levels_and_starts_at_the_configured_variance(self):
        made = self.bench()
        pool = torch.nn.functional.adaptive_avg_pool2d
        inputs = [made.student[0], pool(made.student[1], (2, 4))]
        total = 0.0
        for regressor, scale, student, teacher in zip(
            made.method.regressors, made.method.scales, inputs, made.teacher, strict=True
        ):
            torch.testing.assert_close(torch.nn.functional.softplus(scale) + 1e-5, torch.full_like(scale, 5.0))
            assert [type(m).__name__ for m in regressor] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
            total += vid_loss(regressor(student), teacher, scale).item()
        assert made.loss().item() == pytest.approx(total, rel=1e-6)

    def test_a_step_moves_the_variances(self):
        made = self.bench()
        before = [scale.detach().clone() for scale in made.method.scales]
        made.loss().backward()
        torch.optim.SGD(made.method.parameters(), lr=1.0).step()
        assert all((scale != old).all() for scale, old in zip(made.method.scales, before, strict=True))

    def test_bad_options_are_one_line(self):
        with pytest.raises(KDBenchError, match=r"method.eps: found 0.0; input should be greater than 0"):
            self.bench(eps=0.0)
        with pytest.raises(KDBenchError, match=r"method.init_variance: found 1.0, expected more than method.eps=2.0"):
            self.bench(init_variance=1.0, eps=2.0)
