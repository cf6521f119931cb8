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


def test_poly_falls_to_nothing_by_a_power():
    seen = rates("poly", power=0.5)
    assert seen[0] == pytest.approx(0.1)
    assert seen[75] == pytest.approx(0.05)
    assert rates("poly")[99] == pytest.approx(0.1 * 0.01**0.9)


def test_one_cycle_rises_to_the_peak_and_moves_momentum_against_it():
    seen = rates("one_cycle", peak=10.0, warmup=0.4, final=1e-4)
    assert seen[0] == pytest.approx(0.1)
    assert max(seen) == pytest.approx(1.0, rel=1e-3)
    assert 38 <= seen.index(max(seen)) <= 41
    assert seen[-1] < 1e-2
    assert rates("one_cycle", 3, warmup=0.25)[0] == pytest.approx(0.1), "a rising side of no step ends with step 0"
    momentum = rates("one_cycle", key="betas")
    assert momentum[0] == pytest.approx(0.95)
    assert min(momentum) == pytest.approx(0.85, abs=1e-3)


def test_constant():
    assert set(rates("constant")) == {0.1}


class Untyped(torch.optim.SGD):
    def __init__(self, params, betas=(0.9, 0.99)) -> None:
        super().__init__(params, lr=betas[0], momentum=betas[1])


@pytest.mark.parametrize(
    ("target", "options", "line"),
    [
        ("torch.optim.SGD", {"lr": "1e-3x"}, r"^trainer.optimizer.lr: found '1e-3x'; input should be a valid number"),
        ("torch.optim.SGD", {"lr": True}, "^trainer.optimizer.lr: found True; input should be a valid number$"),
        ("torch.optim.SGD", {"lr": None}, "^trainer.optimizer.lr: found None; input should be a valid number$"),
        ("torch.optim.SGD", {"weight_decay": [1]}, r"^trainer.optimizer.weight_decay: found \(1,\); input should be"),
        ("torch.optim.SGD", {"nesterov": "maybe"}, "^trainer.optimizer.nesterov: found 'maybe'; input should be a"),
        ("torch.optim.SGD", {"lr": -1.0}, "^trainer.optimizer: Invalid learning rate: -1.0$"),
        ("torch.optim.AdamW", {"betas": [0.9]}, r"^trainer.optimizer.betas.1: found \(0.9,\); field required$"),
        ("torch.optim.AdamW", {"betas": [0.9, "x"]}, "^trainer.optimizer.betas.1: found 'x'; input should be a valid"),
        ("torch.optim.AdamW", {"betas": [0.9, 2]}, "^trainer.optimizer: Invalid beta"),
        ("tests.test_optim.Untyped", {"betas": [0.9]}, r"^trainer.optimizer: too few numbers in betas=\[0.9\]$"),
    ],
)
def test_an_option_of_a_wrong_type_or_range_is_one_line(target, options, line):
    with pytest.raises(KDBenchError, match=line):
        make_optimizer({"_target_": target, **options}, [{"params": [nn.Parameter(torch.ones(1))]}])


def test_a_schedule_takes_no_words_for_numbers():
    with pytest.raises(KDBenchError, match=r"^trainer.scheduler.warmup: found 'abc'; input should be a valid number"):
        rates("cosine", warmup="abc")
    with pytest.raises(KDBenchError, match=r"^trainer.scheduler.milestones.1: found 'x'; input should be a valid"):
        rates("steps", milestones=[0.5, "x"])


@pytest.mark.parametrize(
    ("schedule", "options", "line"),
    [
        ("cosine", {"warmup": 2}, "^trainer.scheduler.warmup: found 2; input should be less than or equal to 1$"),
        (
            "cosine",
            {"final": -0.1},
            "^trainer.scheduler.final: found -0.1; input should be greater than or equal",
        ),
        ("one_cycle", {"warmup": -0.1}, "^trainer.scheduler.warmup: found -0.1; input should be greater than or equal"),
        ("one_cycle", {"final": 0}, "^trainer.scheduler.final: found 0; input should be greater than 0$"),
        (
            "steps",
            {"milestones": [0.5, 180]},
            "^trainer.scheduler.milestones.1: found 180; input should be less than",
        ),
    ],
)
def test_shares_of_training_lie_between_0_and_1(schedule, options, line):
    with pytest.raises(KDBenchError, match=line):
        rates(schedule, **options)


def test_an_unknown_option_is_one_line():
    with pytest.raises(KDBenchError, match="trainer.optimizer.lrr: .* 'lr'"):
        make_optimizer({"_target_": "torch.optim.SGD", "lrr": 1}, [{"params": [nn.Parameter(torch.ones(1))]}])
    with pytest.raises(KDBenchError, match="trainer.scheduler.peek: .* 'peak'"):
        rates("one_cycle", peek=1)
