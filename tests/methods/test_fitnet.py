from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdbench.compat import bind
from kdbench.features import Grid
from kdbench.methods.fitnet import FitNet
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {}


def bench(student: tuple[int, ...] = (3, 4, 6, 5), teacher: tuple[int, ...] = (3, 8, 6, 5), **options: Any) -> Bench:
    grids = [Grid(normal(*shape, name=n)) for shape, n in ((student, "s"), (teacher, "t"))]
    return Bench("fitnet", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(FitNet, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


def test_a_binding_to_nothing_is_that_to_the_deepest_grid():
    assert yaml("fitnet")["bind"] == {"feature": None}
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(FitNet, Toy, pair, {"feature": None}) == {"feature": "body"}
    assert bind(FitNet, Toy, pair, {"feature": "stem"}) == {"feature": "stem"}


@pytest.mark.parametrize("space", [(7,), (6, 5), (3, 4, 5)])
def test_equation(space):
    """Mean squared difference between teacher and regressor(student), one position at a time."""
    made = bench((2, 4, *space), (2, 8, *space))
    weight, bias = made.method.regressor.weight.flatten(1).double(), made.method.regressor.bias.double()
    hint = made.student[0].double().flatten(2).transpose(1, 2) @ weight.T + bias
    expected = (hint - made.teacher[0].double().flatten(2).transpose(1, 2)).square().mean()
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench((1, 4, 6, 5), (1, 8, 6, 5)))
    check_deterministic(bench())


def test_has_no_knob_but_its_weight():
    assert set(knobs("fitnet")) == set(OTHER)


def test_zero_where_the_regressor_gives_the_teacher():
    made = bench((2, 4, 6, 5), (2, 4, 6, 5))
    with torch.no_grad():
        made.method.regressor.weight.copy_(torch.eye(4)[:, :, None, None])
        made.method.regressor.bias.zero_()
        made.teacher[0].copy_(made.student[0])
    assert made.loss().item() == pytest.approx(0, abs=1e-12)
    assert not made.gradients()["student.0"].abs().gt(1e-6).any()


def test_grids_of_different_sizes_are_pooled_to_the_smaller():
    made = bench((2, 4, 6, 4), (2, 8, 3, 8))
    hint = F.adaptive_avg_pool2d(made.method.regressor(made.student[0]), (3, 4))
    expected = (hint - F.adaptive_avg_pool2d(made.teacher[0], (3, 4))).square().mean()
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)
    check_gradients(made)


def test_empty_batch_and_low_precision():
    empty = bench((0, 4, 6, 5), (0, 8, 6, 5))
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    full = bench().loss().item()
    low = bench()
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(full, rel=0.02)
    assert differ(bench().outcome(), bench((3, 4, 6, 5), (3, 8, 3, 5)).outcome())
