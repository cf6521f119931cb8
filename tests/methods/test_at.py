from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.at import attention_transfer_loss
from kdbench.methods.at import AT
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {"p": 1.0, "faithful": "paper"}
LEVELS = ["early", "late"]


def bench(batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    """Two levels; the teacher has more channels, and at the late one fewer cells."""
    shapes = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
    student, teacher = (
        {level: Grid(normal(batch, *shape, name=side).to(dtype)) for level, shape in zip(LEVELS, found, strict=True)}
        for side, found in shapes.items()
    )
    return Bench("at", student, teacher, {"features": LEVELS}, **options)


def test_binds_to_every_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(AT, Toy, {"name": "toy", "student": side, "teacher": side}) == {"features": ["stem", "body"]}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_gradients(bench(faithful="paper", p=1.5))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("at"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_is_the_sum_over_the_levels(faithful):
    made = bench(faithful=faithful)
    levels = [attention_transfer_loss(s, t, faithful=faithful) for s, t in zip(made.student, made.teacher, strict=True)]
    assert made.loss().item() == pytest.approx(sum(level.item() for level in levels), rel=1e-6)


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_minimum_where_student_and_teacher_look_alike(faithful):
    values = normal(2, 4, 3, 3)
    made = Bench("at", {"a": Grid(values)}, {"a": Grid(3 * values)}, {"features": ["a"]}, faithful=faithful)
    assert made.loss().item() == pytest.approx(0, abs=1e-6)
    assert made.gradients()["student.0"].isfinite().all()


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.p: found 0.5; input should be greater than or equal to 1"):
        bench(p=0.5)
    with pytest.raises(KDBenchError, match=r"method.faithful: found 'both'; input should be 'code' or 'paper'"):
        bench(faithful="both")
