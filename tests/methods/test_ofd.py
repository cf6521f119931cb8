from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.features import Activated
from kdbench.functional.ofd import gaussian_margin, partial_distance
from kdbench.plugin import State
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal

LEVELS = ["early", "late"]
OTHER: dict[str, Any] = {"margin": "measured"}


def activated(values: Tensor, role: str) -> Activated:
    """What a method reads is ``pre``: of the student the leaf itself, of the teacher without gradient."""
    return Activated(values, pre=values if role == "student" else values.detach())


def bench(batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    """Two levels; the teacher has more channels, and at the late one fewer cells."""
    shapes = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
    student, teacher = (
        {
            level: activated(normal(batch, *shape, name=side).to(dtype), side)
            for level, shape in zip(LEVELS, found, strict=True)
        }
        for side, found in shapes.items()
    )
    return Bench("ofd", student, teacher, {"stages": LEVELS}, **options)


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_gradients(bench(margin="measured"))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("ofd"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_deeper_levels_weigh_twice_as_much():
    made = bench()
    early, late = (c(s) for c, s in zip(made.method.connectors, made.student, strict=True))
    late = torch.nn.functional.adaptive_avg_pool2d(late, (2, 4))
    levels = [
        partial_distance(s, t, made.method.margins(i))
        for i, (s, t) in enumerate(zip((early, late), made.teacher, strict=True))
    ]
    assert made.loss().item() == pytest.approx((levels[0] / 2 + levels[1]).item(), rel=1e-6)


def test_margins_are_those_of_each_channel():
    x = bench().teacher[0].detach().transpose(0, 1).flatten(1)
    expected = gaussian_margin(x.mean(1), x.std(1, correction=0))
    torch.testing.assert_close(bench().method.margins(0), expected, rtol=1e-4, atol=1e-6)
    expected = torch.stack([row[row < 0].mean() for row in x])
    torch.testing.assert_close(bench(margin="measured").method.margins(0), expected)


def test_margin_of_a_channel_that_is_never_negative():
    values = normal(2, 3, 4, 4)
    student, teacher = ({"a": activated(values.abs() + 9, role)} for role in ("student", "teacher"))
    assert not Bench("ofd", student, teacher, {"stages": ["a"]}, margin="measured").method.margins(0).any()
    assert (Bench("ofd", student, teacher, {"stages": ["a"]}).method.margins(0) < 0).all()


@pytest.mark.parametrize("margin", ["gaussian", "measured"])
def test_margins_are_averaged_over_batches_and_are_in_the_checkpoint(margin):
    made = bench(margin=margin)
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
    other = bench(margin=margin)
    other.method.load_state_dict(made.method.state_dict())
    torch.testing.assert_close(other.method.margins(0), made.method.margins(0))


def test_zero_where_the_connector_gives_the_teachers_response():
    values = normal(4, 3, 5, 5)
    made = Bench(
        "ofd", {"a": activated(values, "student")}, {"a": activated(values.clone(), "teacher")}, {"stages": ["a"]}
    )
    with torch.no_grad():
        made.method.connectors[0][0].weight.copy_(torch.eye(3)[:, :, None, None])
        std, mean = torch.std_mean(values, (0, 2, 3), correction=0)
        made.method.connectors[0][1].weight.copy_(std)
        made.method.connectors[0][1].bias.copy_(mean)
    assert made.loss().item() == pytest.approx(0, abs=1e-6)


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.margin: found 'bn'; input should be 'gaussian' or 'measured'"):
        bench(margin="bn")
