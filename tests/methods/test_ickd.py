from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.features import Grid
from kdbench.functional.ickd import channel_correlation_loss
from kdbench.methods.ickd import ICKD
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {"embed": "unequal"}


def bench(student: tuple[int, ...] = (3, 4, 6, 5), teacher: tuple[int, ...] = (3, 8, 6, 5), **options: Any) -> Bench:
    grids = [Grid(normal(*shape, name=n)) for shape, n in ((student, "s"), (teacher, "t"))]
    return Bench("ickd", {"feature": grids[0]}, {"feature": grids[1]}, **options)


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(ICKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


@pytest.mark.parametrize("space", [(7,), (6, 5), (3, 4, 5)])
def test_equation(space):
    """The student through the convolution and the statistics of the batch."""
    made = bench((2, 4, *space), (2, 8, 3, *space[1:]))
    weight = made.method.embed[0].weight.flatten(1)
    mapped = torch.einsum("oc,bc...->bo...", weight, made.student[0])
    axes = [0, *range(2, mapped.ndim)]
    centred = mapped - mapped.mean(axes, keepdim=True)
    mapped = centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
    expected = channel_correlation_loss(mapped, made.teacher[0])
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench((1, 4, 6, 5), (1, 8, 3, 3)))
    check_gradients(bench(embed="unequal"))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("ickd"))
def test_every_knob_counts(knob):
    equal = (3, 4, 6, 5), (3, 4, 6, 5)
    assert differ(bench(*equal).outcome(), bench(*equal, **{knob: OTHER[knob]}).outcome())


def test_zero_at_the_teacher():
    values = normal(2, 4, 3, 3)
    made = Bench("ickd", {"feature": Grid(values)}, {"feature": Grid(2 * values)}, embed="unequal")
    assert made.loss().item() == pytest.approx(0, abs=1e-12)
    assert not made.trainable()


def test_empty_batch_and_low_precision():
    empty = bench((0, 4, 6, 5), (0, 8, 6, 5))
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    full, low = bench().loss().item(), bench()
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.loss().item() == pytest.approx(full, rel=0.05)
