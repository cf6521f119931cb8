from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid
from kdbench.fit import Training
from kdbench.functional.fsp import fsp_loss
from kdbench.methods.fsp import FSP
from kdbench.plugin import Stage
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy, recipe, teacher_file

LEVELS = ["early", "late"]


def bench(batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    """Two levels; the teacher has more channels, and at the late one fewer cells."""
    shapes = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
    student, teacher = (
        {level: Grid(normal(batch, *shape, name=side).to(dtype)) for level, shape in zip(LEVELS, found, strict=True)}
        for side, found in shapes.items()
    )
    return Bench("fsp", student, teacher, {"stages": LEVELS}, **options)


def equal(**options: Any) -> Bench:
    """Student and teacher of equal widths."""
    student, teacher = (
        {level: Grid(normal(2, width, 4, 4, name=side)) for level, width in zip(LEVELS, (3, 5), strict=True)}
        for side in ("s", "t")
    )
    return Bench("fsp", student, teacher, {"stages": LEVELS}, **options)


def test_binds_to_every_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(FSP, Toy, {"name": "toy", "student": side, "teacher": side}) == {"stages": ["stem", "body"]}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_gradients(equal())
    check_deterministic(bench())


def test_every_knob_counts():
    assert set(knobs("fsp")) == {"project", "init_epochs"}
    assert bench(init_epochs=0.5).method.stages()[0].epochs == 0.5
    with pytest.raises(KDBenchError, match="level 0 is 4 wide in the student and 8 in the teacher"):
        bench(project=False)


@pytest.mark.parametrize("project", [True, False])
def test_projects_nothing_where_widths_agree(project):
    made = equal(project=project)
    assert not made.trainable()
    assert made.loss().item() == pytest.approx(fsp_loss(made.student, made.teacher).item(), rel=1e-6)


def test_is_the_loss_of_the_projected_grids():
    made = bench()
    projected = [p(s) for p, s in zip(made.method.projectors, made.student, strict=True)]
    assert made.loss().item() == pytest.approx(fsp_loss(projected, made.teacher).item(), rel=1e-6)


def test_zero_at_the_teacher():
    grids = {level: Grid(normal(2, 4, 3, 3, name=level)) for level in LEVELS}
    assert Bench("fsp", grids, grids, {"stages": LEVELS}).loss() == 0


def test_one_grid_is_too_few():
    grid = {"a": Grid(normal(2, 3, 4, 4))}
    with pytest.raises(KDBenchError, match="gives 1 feature, expected at least 2"):
        Bench("fsp", grid, grid, {"stages": ["a"]})


def test_stages_train_what_they_should(tmp_path):
    spec: dict[str, Any] = {"_target_": "kdbench.methods.fsp.FSP", "weights": {"task": 1.0, "fsp": 1.0}}
    training: Any = Training(recipe("KD", **spec), Toy(), teacher_file(tmp_path))
    assert training.stages == (Stage("init", 0.125, ("fsp",)), Stage("distil", 1.0, ("task",), ("student",)))
    plans = []
    for stage in training.stages:
        distiller = training.distiller(stage)
        distiller.rehearse(training.first_batch())
        plans.append(distiller.plan.updates)
    assert [dict(update.terms) for (update,) in plans] == [{"fsp": 1.0}, {"task": 1.0}]
    assert [any(p.startswith("method.") for p in update.params) for (update,) in plans] == [True, False]


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)
    assert differ(bench().outcome(), bench(batch=2).outcome())
