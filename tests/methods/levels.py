"""What methods that compare the grids of several levels share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Activated, Feature, Grid
from kdbench.needs import Stage
from kdbench.plugin import Method
from kdbench.task import Batch, Task
from kdbench.training.fit import Training
from tests.methods.harness import Bench, Invariants, normal, yaml
from tests.toy import Toy, recipe, teacher_file

LEVELS = ["early", "late"]
#: By level, without the batch; the teacher has more channels, and at the late level fewer cells.
SHAPES = {"student": ((4, 6, 5), (6, 4, 4)), "teacher": ((8, 6, 5), (12, 2, 4))}
SIDE = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
#: A pair of toys whose grids are ``stem`` and ``body``.
PAIR: dict[str, Any] = {"name": "toy", "student": SIDE, "teacher": SIDE}


class Active(Toy):
    """The toy, whose grids say what they were before their activation."""

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, type[Feature]]:
        return {name: Activated if kind is Grid else kind for name, kind in super().kinds(side).items()}

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        found = super().describe(outputs, taps, batch)
        return {n: Activated(f.values, pre=f.values) if isinstance(f, Grid) else f for n, f in found.items()}


def grid(values: Tensor, role: str) -> Grid:
    return Grid(values)


def activated(values: Tensor, role: str) -> Activated:
    """What a method reads is ``pre``: of the student the leaf itself, of the teacher without gradient."""
    return Activated(values, pre=values if role == "student" else values.detach())


def check_init_then_distil(name: str, task: Task, folder: Path) -> None:
    """The method's term trains its own layers and the student first, the supervised loss the student alone after it."""
    spec = {k: v for k, v in yaml(name).items() if k in ("_target_", "weights")}
    training: Any = Training(recipe("KD", **spec), task, {"teacher": teacher_file(folder)})
    assert training.stages == (
        Stage("init", 0.125, (name,), constant=True, owner="method"),
        Stage("distil", 1.0, ("task",), ("student",), owner="method"),
    )
    plans = []
    for stage in training.stages:
        distiller = training.distiller(stage)
        distiller.rehearse(training.first_batch())
        plans.append(distiller.plan.updates)
    assert [dict(update.terms) for (update,) in plans] == [{name: 1.0}, {"task": 1.0}]
    assert [any(p.startswith("method.") for p in update.params) for (update,) in plans] == [True, False]


class LevelInvariants(Invariants):
    """Tests of a method on the grids of two levels.

    Attributes:
        method: The class of the method.
        feature: Makes a grid from values and role.
        task: A task that gives such grids.
    """

    method: type[Method]
    feature: Callable[[Tensor, str], Grid] = staticmethod(grid)
    task: type[Task] = Toy

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
        student, teacher = (
            {
                level: self.feature(normal(batch, *shape, name=role).to(dtype), role)
                for level, shape in zip(LEVELS, shapes, strict=True)
            }
            for role, shapes in SHAPES.items()
        )
        return Bench(self.name, student, teacher, {"stages": LEVELS}, **options)

    def one_level(self, student: Tensor, teacher: Tensor, **options: Any) -> Bench:
        """A bench with one level, of these values."""
        given = {"a": self.feature(student, "student")}, {"a": self.feature(teacher, "teacher")}
        return Bench(self.name, *given, {"stages": ["a"]}, **options)

    def test_binds_to_every_grid(self):
        assert bind(self.method, self.task, PAIR) == {"stages": ["stem", "body"]}


class ProjectedInvariants(LevelInvariants):
    """Tests of a method that relates neighbouring levels, and brings the student's to the teacher's width before."""

    def expected(self, student: list[Tensor], teacher: list[Tensor], **options: Any) -> Tensor:
        """The loss of grids of equal widths."""
        raise NotImplementedError

    def equal(self, **options: Any) -> Bench:
        """Student and teacher of equal widths."""
        student, teacher = (
            {level: Grid(normal(2, width, 4, 4, name=side)) for level, width in zip(LEVELS, (3, 5), strict=True)}
            for side in ("s", "t")
        )
        return Bench(self.name, student, teacher, {"stages": LEVELS}, **options)

    def at_the_teacher(self) -> Tensor:
        """The loss where student and teacher give the same grids."""
        grids = {level: Grid(normal(2, 4, 3, 3, name=level)) for level in LEVELS}
        return Bench(self.name, grids, grids, {"stages": LEVELS}).loss()

    def test_other_widths_need_a_projection(self):
        with pytest.raises(KDBenchError, match="level 0 is 4 wide in the student and 8 in the teacher"):
            self.bench(project=False)

    @pytest.mark.parametrize("project", [True, False])
    def test_projects_nothing_where_widths_agree(self, project):
        made = self.equal(project=project)
        assert not made.trainable()
        assert made.loss().item() == pytest.approx(self.expected(made.student, made.teacher).item(), rel=1e-6)

    def test_is_the_loss_of_the_projected_grids(self):
        for options in self.variants:
            made = self.bench(**options)
            projected = [p(s) for p, s in zip(made.method.projectors, made.student, strict=True)]
            expected = self.expected(projected, made.teacher, **options)
            assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)

    def test_one_grid_is_too_few(self):
        with pytest.raises(KDBenchError, match="gives 1 feature, expected at least 2"):
            self.one_level(normal(2, 3, 4, 4), normal(2, 3, 4, 4))
