"""Methods of dense prediction on features made by hand, and in a training of the dense toy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.features import Grid, Logits
from kdbench.roles.cast import Cast
from kdbench.runs.trainings import Trainings
from kdbench.task import Task
from kdbench.training.fit import Training
from tests.cli import install
from tests.methods.harness import Bench, Features, Hand, Invariants, normal

CLASSES = 4
#: Of the class scores, of the features without the batch, and of the labels.
SPACE, LABELLED = (6, 8), (12, 16)
SHAPES = {"student": ((3, 6, 8), (5, 6, 8)), "teacher": ((6, 6, 8), (8, 6, 8))}
STAGES = ["early", "late"]
SIDE = {"taps": {"stem": "stem", "body": "body"}}
#: A pair of the dense toy.
PAIR: dict[str, Any] = {"name": "dense", "student": SIDE, "teacher": SIDE}


def labels(batch: int) -> Tensor:
    """Blocks of a class, some pixels of none."""
    coarse = torch.randint(-1, CLASSES, (batch, 3, 4), generator=rng.generator(0, "labels", batch))
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)


def at_scores(found: Tensor) -> Tensor:
    """Labels at the size of class scores and features."""
    return found[:, 1::2, 1::2]


class Labelled(Task):
    """Says what the label of each pixel is."""

    def __init__(self, found: Tensor) -> None:
        self.found = found

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"dense_label": lambda batch: self.found}


class MapBench(Bench):
    """A :class:`Bench` whose task knows the class of each pixel, and whose loss is the sum of the terms."""

    def __init__(self, name: str, student: Features, teacher: Features, found: Tensor, **options: Any) -> None:
        self.labels = found
        super().__init__(name, student, teacher, **options)

    def make_cast(self) -> Cast:
        return Cast(Labelled(self.labels), self.method.roles, {r: Hand(found) for r, found in self.given.items()})

    def loss(self, step: int = 0) -> Tensor:
        first, *others = self.checked(step).values()
        return sum(others, start=first)


def scores(batch: int, role: str, dtype: torch.dtype = torch.float32) -> Logits:
    target = at_scores(labels(batch))
    values = (3 * normal(batch, CLASSES, *SPACE, name=role)).to(dtype)
    return Logits(values, class_dim=1, mask=target >= 0, target=target.clamp(min=0))


class MapInvariants(Invariants):
    """Tests of a method on grids ``early`` and ``late`` and maps of class scores, or on some of them.

    Attributes:
        reads: Whether the method reads grids and class scores.
        bindings: Feature name(s) of each need.
    """

    reads: tuple[bool, bool] = (True, True)
    bindings: Mapping[str, str | list[str]] = {}

    def features(self, batch: int, role: str, dtype: torch.dtype) -> Features:
        grids = {
            level: Grid(normal(batch, *shape, name=role).to(dtype))
            for level, shape in zip(STAGES, SHAPES[role], strict=True)
        }
        used = {name for bound in self.bindings.values() for name in ([bound] if isinstance(bound, str) else bound)}
        return {n: f for n, f in grids.items() if n in used and self.reads[0]} | (
            {"logits": scores(batch, role, dtype)} if self.reads[1] else {}
        )

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> MapBench:
        student, teacher = (self.features(batch, role, dtype) for role in ("student", "teacher"))
        return MapBench(self.name, student, teacher, labels(batch), bindings=self.bindings, **options)

    def test_without_any_labelled_pixel_all_stays_finite(self):
        made = self.bench()
        made.labels.fill_(-1)
        for feature in (found.get("logits") for found in made.given.values()):
            if isinstance(feature, Logits) and feature.mask is not None:
                feature.mask.fill_(False)
        assert made.loss().isfinite()
        assert all(grad.isfinite().all() for grad in made.gradients().values())


def trained(folder: Path, method: str, *overrides: str) -> tuple[Any, dict[str, Any]]:
    """A training of the dense toy by a method, done, and its manifest; its teacher is untrained."""
    settings = ["task=dense", f"method={method}", "preset=smoke", "trainer.epochs=1", *overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(folder / "site"))
        run = resolve(config.load(settings), Store(folder / "cache"))
    training = Training(Trainings(run).student_recipe(), run.task, untrained=True)
    return training, training.run(folder)
