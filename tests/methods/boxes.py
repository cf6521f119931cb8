"""Methods of detection on features made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.features import Boxes, Feature, Grid
from kdbench.roles.cast import Cast
from kdbench.task import Task
from tests.methods.harness import Bench, Features, Hand, Invariants, normal
from tests.toy import Toy

#: Levels of a pyramid over inputs of 32 x 48, and their strides.
LEVELS, STRIDES, EXTENT = ["p3", "p4"], (8, 16), (32, 48)
SIZES = tuple((EXTENT[0] // s, EXTENT[1] // s) for s in STRIDES)
WIDTHS = {"student": 4, "teacher": 6}
CLASSES = 3
#: Anchors of a cell, as (width, height) in strides.
SHAPES = ((2.0, 2.0), (3.0, 1.5))
SIDE = {"taps": {"stem": "stem", "body": "body"}}
PAIR: dict[str, Any] = {"name": "toy", "student": SIDE, "teacher": SIDE}


class Boxed(Toy):
    """The toy as if it knew boxes; its grids are those of a pyramid."""

    capabilities = Toy.capabilities | {"boxes", "pyramid"}


def truth(batch: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """True boxes, the first image without any (where there are two), and their classes."""
    g = rng.generator(0, "truth", batch, count)
    corner = torch.rand(batch, count, 2, generator=g) * torch.tensor([30.0, 18.0])
    boxes = torch.cat([corner, corner + 6 + 12 * torch.rand(batch, count, 2, generator=g)], 2)
    boxes[:, :1] = torch.tensor([4.0, 2.0, 38.0, 30.0])  # as large as anchors of the coarse level
    labels = torch.randint(0, CLASSES, (batch, count), generator=g)
    labels[:, -1:] = -1
    if batch > 1:
        labels[0] = -1
    return boxes, labels


def anchors() -> tuple[Tensor, Tensor]:
    """Boxes ``(A, 4)`` that rows start from, level after level, and the level of each."""
    found, level = [], []
    for index, (stride, (tall, wide)) in enumerate(zip(STRIDES, SIZES, strict=True)):
        for i in range(tall):
            for j in range(wide):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                for w, h in SHAPES:
                    w, h = w * stride / 2, h * stride / 2
                    found.append([x - w, y - h, x + w, y + h])
                    level.append(index)
    return torch.tensor(found), torch.tensor(level)


def predicted(batch: int, role: str, dtype: torch.dtype = torch.float32) -> Boxes:
    """Boxes around the anchors."""
    start, level = anchors()
    return Boxes((start + normal(batch, len(start), 4, name=f"boxes {role}")).to(dtype), start, level)


def grids(batch: int, role: str, dtype: torch.dtype = torch.float32) -> dict[str, Feature]:
    """Levels of a pyramid."""
    return {
        name: Grid(normal(batch, WIDTHS[role], *size, name=role + name).to(dtype), stride=(stride, stride))
        for name, stride, size in zip(LEVELS, STRIDES, SIZES, strict=True)
    }


class Known(Task):
    """Says where the true boxes are, and whatever else is given."""

    def __init__(self, found: tuple[Tensor, Tensor], others: Mapping[str, Callable[..., Any]]) -> None:
        self.found, self.others = found, others

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"boxes": lambda batch: self.found, **self.others}


class BoxBench(Bench):
    """A :class:`Bench` whose task knows the true boxes, and whose loss is the sum of the terms."""

    def __init__(
        self,
        name: str,
        student: Features,
        teacher: Features,
        found: tuple[Tensor, Tensor],
        ops: Mapping[str, Callable[..., Any]] | None = None,
        **options: Any,
    ) -> None:
        self.truth, self.ops = found, ops or {}
        super().__init__(name, student, teacher, **options)

    def make_cast(self) -> Cast:
        task = Known(self.truth, self.ops)
        return Cast(task, self.method.roles, {r: Hand(found) for r, found in self.given.items()})

    def loss(self, step: int = 0) -> Tensor:
        first, *others = self.checked(step).values()
        return sum(others, start=first)


class BoxInvariants(Invariants):
    """Tests of a method of detection."""

    def features(self, batch: int, role: str, dtype: torch.dtype) -> Features:
        return grids(batch, role, dtype)

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> BoxBench:
        student, teacher = (self.features(batch, role, dtype) for role in ("student", "teacher"))
        return self.made(student, teacher, truth(batch), **options)

    def made(self, student: Features, teacher: Features, found: tuple[Tensor, Tensor], **options: Any) -> BoxBench:
        return BoxBench(self.name, student, teacher, found, bindings={"stages": LEVELS}, **options)

    def without_boxes(self, count: int) -> BoxBench:
        """A bench whose images have none, in as many rows."""
        student, teacher = (self.features(2, role, torch.float32) for role in ("student", "teacher"))
        none = torch.full((2, count), -1)
        return self.made(student, teacher, (torch.zeros(2, count, 4), none))

    def test_without_any_box_all_stays_finite(self):
        for count in (0, 2):
            made = self.without_boxes(count)
            assert made.loss().isfinite()
            assert made.loss().requires_grad
            assert all(grad.isfinite().all() for grad in made.gradients().values())
