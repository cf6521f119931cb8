from __future__ import annotations

from functools import partial

import pytest
import torch

from kdbench.functional.taid import interpolated_loss, next_share
from kdbench.methods.taid import TAID
from kdbench.needs import State
from tests.methods.laws import LawInvariants


class TestTAID(LawInvariants):
    name, method = "taid", TAID
    loss = partial(interpolated_loss, share=0.4)
    other = {"temperature": 2.0, "start": 0.7}
    apart = ("end", "alpha", "decay")

    @pytest.mark.parametrize("options", [{}, {"end": 0.5}, {"alpha": 0.5}, {"alpha": 0.5, "decay": 0.1}])
    def test_the_share_of_the_teacher_grows_by_the_losses(self, options):
        made = self.bench(**options)
        share, momentum, last = torch.tensor(0.4), torch.tensor(0.0), torch.tensor(torch.nan)
        for step in range(4):
            loss = made.loss(step).detach()
            state = State(0, step, step / 10)
            made.method.after_step(made.signals(step), state)
            share, momentum = next_share(share, momentum, loss, last, state.progress, **{"start": 0.4, **options})
            last = loss
            assert made.method.readings()["share"] == pytest.approx(share.item(), rel=1e-6)
        assert share > 0.4

    def test_what_it_remembers_is_in_the_checkpoint(self):
        made, other = self.bench(alpha=0.5), self.bench(alpha=0.5)
        for step in range(3):
            made.loss(step)
            made.method.after_step(made.signals(step), State(0, step, 0.1))
        other.method.load_state_dict(made.method.state_dict())
        assert other.loss(3) == made.loss(3)
        assert set(made.method.state_dict()) == {"share", "momentum", "loss", "last"}
