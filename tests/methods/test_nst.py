from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.compat import bind
from kdbench.features import Grid
from kdbench.functional.nst import nst_loss
from kdbench.methods.nst import NST
from tests.methods.harness import Bench, check_deterministic, check_gradients, knobs, normal
from tests.toy import Toy

LEVELS = ["early", "late"]


def bench(batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    """Two levels; the teacher has more channels, and at the late one fewer cells."""
    shapes = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
    student, teacher = (
        {level: Grid(normal(batch, *shape, name=side).to(dtype)) for level, shape in zip(LEVELS, found, strict=True)}
        for side, found in shapes.items()
    )
    return Bench("nst", student, teacher, {"stages": LEVELS}, **options)


def test_binds_to_every_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(NST, Toy, {"name": "toy", "student": side, "teacher": side}) == {"stages": ["stem", "body"]}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())


def test_has_no_knob_but_its_weight():
    assert not knobs("nst")


def test_is_the_sum_over_the_levels():
    made = bench()
    levels = [nst_loss(s, t) for s, t in zip(made.student, made.teacher, strict=True)]
    assert made.loss().item() == pytest.approx(sum(level.item() for level in levels), rel=1e-6)


def test_zero_where_student_and_teacher_fire_alike():
    values = normal(2, 4, 3, 3)
    made = Bench("nst", {"a": Grid(values)}, {"a": Grid(3 * values.flip(1))}, {"stages": ["a"]})
    assert made.loss().item() == pytest.approx(0, abs=1e-6)
    assert made.gradients()["student.0"].abs().max() < 1e-6


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)
