from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Activated, Feature, Grid
from kdbench.fit import Training
from kdbench.functional.ab import activation_boundary_loss
from kdbench.methods.ab import AB
from kdbench.plugin import Stage
from kdbench.task import Batch
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy, recipe, teacher_file

LEVELS = ["early", "late"]


class Active(Toy):
    """The toy, whose grids say what they were before their activation."""

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, type[Feature]]:
        return {name: Activated if kind is Grid else kind for name, kind in super().kinds(side).items()}

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        found = super().describe(outputs, taps, batch)
        return {n: Activated(f.values, pre=f.values) if isinstance(f, Grid) else f for n, f in found.items()}


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
    return Bench("ab", student, teacher, {"stages": LEVELS}, **options)


def test_binds_to_every_activated_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(AB, Active, {"name": "toy", "student": side, "teacher": side}) == {"stages": ["stem", "body"]}
    with pytest.raises(KDBenchError, match="AB needs Activated"):
        bind(AB, Toy, {"name": "toy", "student": side, "teacher": side})


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())


def test_every_knob_counts():
    assert set(knobs("ab")) == {"margin", "init_epochs"}
    assert differ(bench().outcome(), bench(margin=0.5).outcome())
    assert bench(init_epochs=0.5).method.stages()[0].epochs == 0.5


def test_deeper_levels_weigh_twice_as_much():
    made = bench()
    early, late = (c(s) for c, s in zip(made.method.connectors, made.student, strict=True))
    late = torch.nn.functional.adaptive_avg_pool2d(late, (2, 4))
    expected = activation_boundary_loss(early, made.teacher[0]) / 2 + activation_boundary_loss(late, made.teacher[1])
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)


def test_zero_where_the_connector_is_beyond_the_margin():
    values = normal(4, 3, 5, 5).sign()
    made = Bench(
        "ab", {"a": activated(values, "student")}, {"a": activated(values.clone(), "teacher")}, {"stages": ["a"]}
    )
    with torch.no_grad():
        made.method.connectors[0][0].weight.copy_(torch.eye(3)[:, :, None, None])
        made.method.connectors[0][1].weight.fill_(3.0)
    assert made.loss() == 0


def test_stages_train_what_they_should(tmp_path):
    spec: dict[str, Any] = {"_target_": "kdbench.methods.ab.AB", "weights": {"task": 1.0, "ab": 0.003}}
    training: Any = Training(recipe("KD", **spec), Active(), teacher_file(tmp_path))
    assert training.stages == (Stage("init", 0.125, ("ab",)), Stage("distil", 1.0, ("task",), ("student",)))
    plans = []
    for stage in training.stages:
        distiller = training.distiller(stage)
        distiller.rehearse(training.first_batch())
        plans.append(distiller.plan.updates)
    assert [dict(update.terms) for (update,) in plans] == [{"ab": 1.0}, {"task": 1.0}]
    assert [any(p.startswith("method.") for p in update.params) for (update,) in plans] == [True, False]


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.margin: found 0.0; input should be greater than 0"):
        bench(margin=0.0)
