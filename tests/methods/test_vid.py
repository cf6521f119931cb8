from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.vid import vid_loss
from kdbench.methods.vid import VID
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

LEVELS = ["early", "late"]
OTHER: dict[str, Any] = {"init_variance": 1.0, "eps": 0.1}


def bench(batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    """Two levels; the teacher has more channels, and at the late one fewer cells."""
    shapes = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
    student, teacher = (
        {level: Grid(normal(batch, *shape, name=side).to(dtype)) for level, shape in zip(LEVELS, found, strict=True)}
        for side, found in shapes.items()
    )
    return Bench("vid", student, teacher, {"stages": LEVELS}, **options)


def test_binds_to_every_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(VID, Toy, {"name": "toy", "student": side, "teacher": side}) == {"stages": ["stem", "body"]}


def test_gradients_and_determinism():
    """The gradient reaches the variances, too: a well-known reimplementation never trains them."""
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())
    assert {n for n in bench().trainable() if "scale" in n} == {"scales.0", "scales.1"}


@pytest.mark.parametrize("knob", knobs("vid"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_is_the_sum_over_the_levels_and_starts_at_the_configured_variance():
    made = bench()
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


def test_a_step_moves_the_variances():
    made = bench()
    before = [scale.detach().clone() for scale in made.method.scales]
    made.loss().backward()
    torch.optim.SGD(made.method.parameters(), lr=1.0).step()
    assert all((scale != old).all() for scale, old in zip(made.method.scales, before, strict=True))


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.eps: found 0.0; input should be greater than 0"):
        bench(eps=0.0)
    with pytest.raises(KDBenchError, match=r"method.init_variance: found 1.0, expected more than method.eps=2.0"):
        bench(init_variance=1.0, eps=2.0)
