from __future__ import annotations

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.features import Vector
from kdbench.functional.rkd import angle_loss, distance_loss
from kdbench.methods.rkd import RKD
from kdbench.needs import State
from kdbench.signals import Context
from tests.methods.harness import Bench, knobs, normal, yaml
from tests.toy import Toy


def bench(batch: int = 5, dtype: torch.dtype = torch.float32) -> Bench:
    student, teacher = (Vector(normal(batch, d, name=n).to(dtype)) for d, n in ((6, "s"), (10, "t")))
    return Bench("rkd", {"pooled": student}, {"pooled": teacher})


def test_binds_to_the_pooled_feature():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(RKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"pooled": "pooled"}


def test_two_terms_with_the_weights_of_the_paper():
    made = bench()
    terms = made.terms()
    assert yaml("rkd")["weights"] == {"task": 1.0, "rkd_distance": 25.0, "rkd_angle": 50.0}
    assert knobs("rkd") == ["samples"]
    assert terms["rkd_distance"] == distance_loss(made.student[0], made.teacher[0])
    assert terms["rkd_angle"] == angle_loss(made.student[0], made.teacher[0])
    assert all(torch.equal(terms[name], value) for name, value in made.terms().items())


@pytest.mark.parametrize("term", ["rkd_distance", "rkd_angle"])
def test_gradients_and_terms_that_are_not_wanted(term):
    made = bench()
    found = made.method.terms(made.signals(), Context(State(0, 0, 0.0), 0, frozenset({term})))
    assert set(found) == {term}
    found[term].backward()
    assert made.student[0].grad is not None
    assert made.student[0].grad.abs().min() > 0
    assert made.teacher[0].grad is None


def test_small_batches_and_low_precision():
    for batch in (0, 1):
        for value in bench(batch).terms().values():
            assert value == 0
            assert value.requires_grad
    full, low = bench().terms(), bench(dtype=torch.bfloat16).terms()
    for name, value in low.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(full[name].item(), rel=0.05)


def test_of_many_samples_some_are_drawn_anew_for_each_step():
    student, teacher = Vector(normal(9, 4, name="s")), Vector(normal(9, 5, name="t"))
    made = Bench("rkd", {"pooled": student}, {"pooled": teacher}, samples=4)
    found = [made.terms(step)["rkd_distance"] for step in range(2)]
    for step, value in enumerate(found):
        drawn = torch.randperm(9, generator=Context(State(0, step, 0.0), 0).generator("rkd"))[:4]
        assert torch.equal(value, distance_loss(student.values[drawn], teacher.values[drawn]))
    assert found[0] != found[1]
