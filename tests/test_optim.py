from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.optim import make_optimizer, make_scheduler


def rates(target: str, steps: int = 100, key: str = "lr", **options) -> list[float]:
    """The value of a group's ``key`` at each of ``steps`` steps."""
    optimizer = make_optimizer(
        {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.9, 0.99]}, [{"params": [nn.Parameter(torch.ones(1))]}]
    )
    scheduler = make_scheduler({"_target_": f"kdbench.optim.{target}", **options}, optimizer, steps)
    seen = []
    for _ in range(steps):
        value = optimizer.param_groups[0][key]
        seen.append(value[0] if isinstance(value, tuple) else value)
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_warms_up_and_ends_near_its_last_value():
    seen = rates("cosine", warmup=0.1, final=0.01)
    assert seen[:3] == pytest.approx([0.001, 0.01, 0.02])
    assert max(seen) == seen[10] == pytest.approx(0.1)
    assert seen[-1] == pytest.approx(0.001, abs=1e-4)
    assert rates("cosine")[0] == pytest.approx(0.1)
    assert rates("cosine")[50] == pytest.approx(0.05)


def test_steps_are_in_shares_of_training():
    seen = rates("steps", 240)
    assert seen[149] == pytest.approx(0.1)
    assert seen[150] == pytest.approx(0.01)
    assert seen[180] == pytest.approx(1e-3)
    assert seen[239] == pytest.approx(1e-4)


def test_one_cycle_rises_to_the_peak_and_moves_momentum_against_it():
    seen = rates("one_cycle", peak=10.0, warmup=0.4, final=1e-4)
    assert seen[0] == pytest.approx(0.1)
    assert max(seen) == pytest.approx(1.0, rel=1e-3)
    assert 38 <= seen.index(max(seen)) <= 41
    assert seen[-1] < 1e-2
    momentum = rates("one_cycle", key="betas")
    assert momentum[0] == pytest.approx(0.95)
    assert min(momentum) == pytest.approx(0.85, abs=1e-3)


def test_constant():
    assert set(rates("constant")) == {0.1}


def test_an_unknown_option_is_one_line():
    with pytest.raises(KDBenchError, match="trainer.optimizer.lrr: .* 'lr'"):
        make_optimizer({"_target_": "torch.optim.SGD", "lrr": 1}, [{"params": [nn.Parameter(torch.ones(1))]}])
    for betas, line in (([0.9], r"trainer.optimizer: too few numbers in betas=\[0.9\]"), ([0.9, 2], "Invalid beta")):
        with pytest.raises(KDBenchError, match=line):
            make_optimizer(
                {"_target_": "torch.optim.AdamW", "betas": betas}, [{"params": [nn.Parameter(torch.ones(1))]}]
            )
    with pytest.raises(KDBenchError, match="trainer.scheduler.peek: .* 'peak'"):
        rates("one_cycle", peek=1)
