from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.kd import kd_loss
from kdbench.functional.lighthgnn import high_order_loss
from kdbench.needs import Stage
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Answer, Source
from kdbench.task import Batch
from tests.methods.harness import Bench, Hand, by_hand, normal, yaml

MEMBERS = torch.tensor([[0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2]])


class Nervous(Source):
    """A teacher whose last node changes under noise."""

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features

    def answer(self, batch: Batch, params: Any = None) -> Answer:
        found = by_hand(self.features, batch)
        if batch.targets == "noised":
            logits = found.features["logits"].values.clone()
            logits[3:] = 0
            found.features["logits"] = Logits(logits)  # type: ignore[index]
        return found


class Sets(Bench):
    def make_cast(self) -> Cast:
        members = MEMBERS if len(self.student[0]) else MEMBERS[:, :0]
        ops = {
            "hyperedges": lambda batch: members,
            "noised": lambda batch, draw: Batch(None, "noised", batch.ids),
        }
        task: Any = SimpleNamespace(ops=lambda: ops)
        sources = {"student": Hand(self.given["student"]), "teacher": Nervous(self.given["teacher"])}
        return Cast(task, self.method.roles, sources)


def bench(count: int = 4, dtype: torch.dtype = torch.float32, name: str = "lighthgnn_plus", **options: Any) -> Sets:
    mask = torch.tensor([True, True, False, True])[:count]
    student, teacher = ({"logits": Logits(3 * normal(count, 5, name=r).to(dtype), mask=mask)} for r in "st")
    made = Sets(name, student, teacher, **options)
    made.method.enter(Stage(), made.signals())
    return made


def test_terms_are_those_of_nodes_and_of_reliable_hyperedges():
    made = bench()
    student, teacher = (made.given[role]["logits"] for role in ("student", "teacher"))
    terms, method = made.checked(), made.method
    torch.testing.assert_close(terms["soft"], kd_loss(student.rows(), teacher.rows(), 1.0))
    # Noise changes the last node alone, so the last hyperedge never counts and the others always do.
    assert method.reliability.tolist() == pytest.approx([1, 1, 0])
    kept = torch.tensor([True, True, False])
    torch.testing.assert_close(terms["high_order"], high_order_loss(student.values, teacher.values, MEMBERS, kept))
    sum(terms.values(), torch.zeros(())).backward()
    assert made.student[0].grad is not None
    assert made.student[0].grad[3].any()
    assert made.teacher[0].grad is None


def test_random_hyperedges_are_as_many():
    made = bench(hyperedges="random")
    found = {round(made.terms(step)["high_order"].item(), 4) for step in range(12)}
    assert len(found) > 2
    assert made.terms(3)["high_order"] == made.terms(3)["high_order"]


def test_the_form_of_the_release():
    made, plain = bench(faithful="code"), bench()
    student, teacher = (made.given[role]["logits"].rows() for role in ("student", "teacher"))
    law = teacher.softmax(1)
    expected = (law.exp() * (law - student.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(made.terms()["soft"], expected)
    assert made.terms()["high_order"] != plain.terms()["high_order"]


def test_weights_low_precision_and_no_node():
    assert yaml("lighthgnn")["weights"] == {"task": 0.0, "soft": 1.0, "high_order": 0.0}
    assert yaml("lighthgnn_plus")["weights"]["high_order"] == 1.0
    for value in bench(dtype=torch.bfloat16).terms().values():
        assert value.dtype == torch.float32
    assert all(value == 0 for value in bench(0).terms().values())


def test_other_hyperedges_than_the_first_are_one_line():
    made = bench()
    made.method.reliability = made.method.reliability[:1]
    with pytest.raises(KDBenchError, match="a batch has 3 hyperedges, the first one had 1"):
        made.terms()
