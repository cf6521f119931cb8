from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Vector
from kdbench.functional.d2dgn import unlearning_feature_loss, unlearning_response_loss
from kdbench.methods.d2dgn import ALL, D2DGN
from kdbench.roles.cast import Cast
from tasks.graph.links import LinkTask
from tasks.graph.task import GraphTask
from tests.methods.harness import Bench, Hand, Invariants, leaves, normal, yaml


class Forgetting(Bench):
    """With a third network, and a task that wants every second sample forgotten."""

    def make_cast(self) -> Cast:
        self.destroyer = sample("destroyer", len(self.student[0]), self.student[0].dtype)
        self.third = leaves(self.destroyer)
        task: Any = SimpleNamespace(ops=lambda: {"forgotten": lambda batch: batch.ids % 2 == 1})
        given = {**self.given, "destroyer": self.destroyer}
        return Cast(task, self.method.roles, {role: Hand(features) for role, features in given.items()})


def sample(role: str, batch: int, dtype: torch.dtype, mask: torch.Tensor | None = None) -> dict[str, Any]:
    logits = Logits(2 * normal(batch, 2, name=role).to(dtype), mask=mask, law="bernoulli")
    return {"logits": logits, "feature": Vector(normal(batch, 4, name=f"{role} feature").to(dtype))}


class TestD2DGN(Invariants):
    name = "d2dgn"
    apart = ("length",)

    def bench(self, batch: int = 4, dtype: torch.dtype = torch.float32, **options: Any) -> Summed:
        given = {role: sample(role, batch, dtype) for role in ("student", "teacher")}
        return Summed("d2dgn", given["student"], given["teacher"], **options)


class Summed(Forgetting):
    def loss(self, step: int = 0) -> torch.Tensor:
        return sum(self.checked(step).values(), torch.zeros(()))


def test_terms_are_those_of_all_samples():
    masked = torch.tensor([True, False, True, True])
    student, teacher = (sample(role, 4, torch.float32, masked) for role in ("student", "teacher"))
    made = Forgetting("d2dgn", student, teacher)
    terms, gone = made.checked(), torch.tensor([False, True, False, True])
    three = [made.given["student"], made.given["teacher"], made.destroyer]
    ours, knows, blank = (f["logits"].values for f in three)
    torch.testing.assert_close(terms["response"], unlearning_response_loss(ours, knows, blank, gone, "bernoulli"))
    ours, knows, blank = (f["feature"].values for f in three)
    torch.testing.assert_close(terms["feature"], unlearning_feature_loss(ours, knows, blank, gone))
    sum(terms.values(), torch.zeros(())).backward()
    assert all(leaf.grad is None for leaf in made.third)


def test_it_starts_as_the_teacher_and_takes_a_share_of_its_epochs():
    method = D2DGN(length=0.3)
    (stage,) = method.stages()
    assert stage.epochs == 0.3
    role = method.roles["student"]
    assert (role.mode, role.init, role.product) == ("train", "trained", "teacher")
    assert method.roles["destroyer"].init == "fresh"
    assert yaml("d2dgn")["weights"]["task"] == 0


def test_what_it_needs():
    side = {"taps": {"ends": "ends"}}
    pair = {"name": "links", "student": side, "teacher": side}
    assert bind(D2DGN, LinkTask, pair) == {"logits": "logits", "feature": "ends"}
    with pytest.raises(KDBenchError, match="D2DGN requires forgets, which task graph lacks"):
        bind(D2DGN, GraphTask, pair)
    assert set(ALL) == set(D2DGN.roles)
