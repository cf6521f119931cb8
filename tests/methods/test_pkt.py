from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.features import Vector
from kdbench.functional.pkt import pkt_loss
from kdbench.methods.pkt import PKT
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {"faithful": "paper"}


def bench(batch: int = 5, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    student, teacher = (Vector(normal(batch, d, name=n).to(dtype)) for d, n in ((6, "s"), (10, "t")))
    return Bench("pkt", {"pooled": student}, {"pooled": teacher}, **options)


def test_binds_to_the_pooled_feature():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(PKT, Toy, {"name": "toy", "student": side, "teacher": side}) == {"pooled": "pooled"}


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_compares_the_pooled_features(faithful):
    made = bench(faithful=faithful)
    assert made.loss() == pkt_loss(made.student[0], made.teacher[0], faithful=faithful)
    check_gradients(made)
    check_deterministic(bench(faithful=faithful))


@pytest.mark.parametrize("knob", knobs("pkt"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_zero_at_the_teacher():
    values = normal(4, 3)
    made = Bench("pkt", {"pooled": Vector(values)}, {"pooled": Vector(2 * values)})
    assert made.loss().item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_small_batches_and_low_precision(faithful):
    for batch in (0, 1):
        made = bench(batch, faithful=faithful)
        assert made.loss() == 0
        assert made.loss().requires_grad
        assert made.gradients()["student.0"].isfinite().all()
    full = bench(faithful=faithful).loss().item()
    assert bench(dtype=torch.bfloat16, faithful=faithful).loss().item() == pytest.approx(full, rel=0.05)
