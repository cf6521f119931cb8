from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.functional.kdsvd import kdsvd_loss
from kdbench.methods.kdsvd import KDSVD
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

LEVELS = ["early", "late"]


def bench(batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    """Two levels; the teacher has more channels, and at the late one fewer cells."""
    shapes = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
    student, teacher = (
        {level: Grid(normal(batch, *shape, name=side).to(dtype)) for level, shape in zip(LEVELS, found, strict=True)}
        for side, found in shapes.items()
    )
    return Bench("kdsvd", student, teacher, {"stages": LEVELS}, **options)


def equal(**options: Any) -> Bench:
    """Student and teacher of equal widths."""
    student, teacher = (
        {level: Grid(normal(2, width, 4, 4, name=side)) for level, width in zip(LEVELS, (3, 5), strict=True)}
        for side in ("s", "t")
    )
    return Bench("kdsvd", student, teacher, {"stages": LEVELS}, **options)


def test_binds_to_every_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(KDSVD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"stages": ["stem", "body"]}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_gradients(equal(k=3))
    check_deterministic(bench())


def test_every_knob_counts():
    assert set(knobs("kdsvd")) == {"k", "project"}
    assert differ(bench().outcome(), bench(k=2).outcome())
    with pytest.raises(KDBenchError, match="level 0 is 4 wide in the student and 8 in the teacher"):
        bench(project=False)


@pytest.mark.parametrize("project", [True, False])
def test_projects_nothing_where_widths_agree(project):
    made = equal(project=project)
    assert not made.trainable()
    assert made.loss().item() == pytest.approx(kdsvd_loss(made.student, made.teacher).item(), rel=1e-6)


def test_is_the_loss_of_the_projected_grids():
    made = bench(k=2)
    projected = [p(s) for p, s in zip(made.method.projectors, made.student, strict=True)]
    assert made.loss().item() == pytest.approx(kdsvd_loss(projected, made.teacher, 2).item(), rel=1e-6)


def test_zero_at_the_teacher():
    grids = {level: Grid(normal(2, 4, 3, 3, name=level)) for level in LEVELS}
    assert Bench("kdsvd", grids, grids, {"stages": LEVELS}).loss().item() == pytest.approx(0, abs=1e-10)


def test_one_grid_is_too_few():
    grid = {"a": Grid(normal(2, 3, 4, 4))}
    with pytest.raises(KDBenchError, match="gives 1 feature, expected at least 2"):
        Bench("kdsvd", grid, grid, {"stages": ["a"]})


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    made, low = equal(), equal()
    for leaf in (*low.student, *low.teacher):
        leaf.data = leaf.data.bfloat16()
    assert low.loss().item() == pytest.approx(made.loss().item(), rel=0.05)
