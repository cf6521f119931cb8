from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.pivotal_kd import pivotal_logit_loss, pivotal_positions
from kdbench.methods.pivotal_kd import PivotalKD
from kdbench.roles.cast import Cast
from kdbench.task import Task
from tests.methods.boxes import PAIR
from tests.methods.harness import Bench, Hand, Invariants, normal, yaml
from tests.toy import Toy

ROWS, CLASSES = 11, 3


def drawn(batch: int) -> Tensor:
    return torch.rand(batch, ROWS, generator=rng.generator(0, "peaks", batch))


class Peaked(Task):
    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"peaks": lambda batch, count: drawn(len(batch))[:, :count]}


class PeakedBench(Bench):
    def make_cast(self) -> Cast:
        return Cast(Peaked(), self.method.roles, {role: Hand(found) for role, found in self.given.items()})


def scores(batch: int, role: str, dtype: torch.dtype = torch.float32, **marks: Any) -> dict[str, Logits]:
    return {"logits": Logits(normal(batch, ROWS, CLASSES, name=role).to(dtype), law="bernoulli", **marks)}


class TestPivotalKD(Invariants):
    name = "pivotal_kd"
    other = {"threshold": 0.7, "top": 2, "gaussian": False, "soft": False}
    variants = ({}, {"gaussian": False, "top": 4, "threshold": 0.2})

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
        return PeakedBench(self.name, scores(batch, "student", dtype), scores(batch, "teacher", dtype), **options)

    def test_term(self):
        made = self.bench()
        (student,), (teacher,) = made.student, made.teacher
        weight = pivotal_positions(teacher.sigmoid(), peaks=drawn(3), soft=True).flatten()
        expected = pivotal_logit_loss(student.flatten(0, 1), teacher.flatten(0, 1), weight)
        torch.testing.assert_close(made.checked()["pivotal"], expected)

    def test_maps_and_rows_that_are_not_distilled(self):
        """Class scores as maps give what they give as rows, and masked rows have no part."""
        mask = torch.ones(2, ROWS, dtype=torch.bool)
        mask[0, :5] = False
        made = PeakedBench(self.name, scores(2, "student", mask=mask), scores(2, "teacher", mask=mask))
        (gradient,) = torch.autograd.grad(made.loss(), made.student)
        assert not gradient[0, :5].any()
        assert gradient[1].any()

        def maps(role: str) -> dict[str, Logits]:
            values = scores(2, role)["logits"].values.mT[..., None]
            return {"logits": Logits(values, class_dim=1, mask=mask[..., None], law="bernoulli")}

        torch.testing.assert_close(PeakedBench(self.name, maps("student"), maps("teacher")).loss(), made.loss())


def test_binds_and_weighs():
    with pytest.raises(KDBenchError, match="^PivotalKD requires peaks, which task toy lacks$"):
        bind(PivotalKD, Toy, PAIR)
    assert yaml("pivotal_kd")["weights"] == {"task": 1.0, "pivotal": 7.0}
