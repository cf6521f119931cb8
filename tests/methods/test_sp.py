from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.features import Feature, Grid, Tokens, Vector
from kdbench.functional.sp import similarity_preserving_loss
from kdbench.methods.sp import SP
from tests.methods.harness import Bench, check_deterministic, check_gradients, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {}
KINDS: list[tuple[type[Feature], tuple[int, ...], tuple[int, ...]]] = [
    (Grid, (4, 6, 5), (8, 3, 3)),
    (Tokens, (5, 4), (9, 8)),
    (Vector, (6,), (10,)),
]


def bench(batch: int = 4, kind: int = 0, dtype: torch.dtype = torch.float32) -> Bench:
    cls, *shapes = KINDS[kind]
    student, teacher = (
        cls(normal(batch, *shape, name=n).to(dtype)) for shape, n in zip(shapes, ("s", "t"), strict=True)
    )
    return Bench("sp", {"feature": student}, {"feature": teacher})


def test_binds_to_the_deepest_grid():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(SP, Toy, {"name": "toy", "student": side, "teacher": side}) == {"feature": "body"}


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_kind(kind):
    made = bench(kind=kind)
    expected = similarity_preserving_loss(made.student[0], made.teacher[0])
    assert made.loss().item() == pytest.approx(expected.item())
    check_gradients(made)


def test_has_no_knob_but_its_weight():
    assert set(knobs("sp")) == set(OTHER)


def test_zero_at_the_teacher_and_deterministic():
    values = normal(4, 3, 2, 2)
    made = Bench("sp", {"feature": Grid(values)}, {"feature": Grid(2 * values)})
    assert made.loss().item() == pytest.approx(0, abs=1e-12)
    check_deterministic(bench())


def test_a_batch_of_one_has_nothing_to_compare():
    one = bench(batch=1)
    assert one.loss().item() == pytest.approx(0, abs=1e-12)
    assert one.gradients()["student.0"].isfinite().all()


def test_empty_batch_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)
