from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.features import Vector
from kdbench.functional.cc import correlation_congruence_loss, neighbour_product_loss
from kdbench.methods.cc import CC
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {"embed_dim": 16, "faithful": "paper", "gamma": 1.0, "order": 3}


def bench(batch: int = 4, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    student, teacher = (Vector(normal(batch, d, name=n).to(dtype)) for d, n in ((6, "s"), (10, "t")))
    return Bench("cc", {"pooled": student}, {"pooled": teacher}, **options)


def test_binds_to_the_pooled_feature():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    assert bind(CC, Toy, {"name": "toy", "student": side, "teacher": side}) == {"pooled": "pooled"}


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_compares_the_embeddings(faithful):
    made = bench(faithful=faithful)
    sides = (made.student[0], made.method.embed_student), (made.teacher[0], made.method.embed_teacher)
    embedded = [feature @ linear.weight.T + linear.bias for feature, linear in sides]
    loss = neighbour_product_loss if faithful == "code" else correlation_congruence_loss
    assert made.loss().item() == pytest.approx(loss(*embedded).item(), rel=1e-6)


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_gradients_reach_both_embeddings(faithful):
    made = bench(faithful=faithful)
    assert set(made.trainable()) == {f"embed_{side}.{p}" for side in ("student", "teacher") for p in ("weight", "bias")}
    check_gradients(made)
    check_deterministic(bench(faithful=faithful))


@pytest.mark.parametrize("knob", knobs("cc"))
def test_every_knob_counts(knob):
    kernel: dict[str, Any] = {"faithful": "paper"} if knob in ("gamma", "order") else {}
    assert differ(bench(**kernel).outcome(), bench(**{**kernel, knob: OTHER[knob]}).outcome())


@pytest.mark.parametrize("faithful", ["code", "paper"])
def test_small_batches_and_low_precision(faithful):
    for batch in (0, 1):
        made = bench(batch, faithful=faithful)
        assert made.loss().item() == pytest.approx(0, abs=1e-12)
        assert made.loss().requires_grad
        assert made.gradients()["student.0"].isfinite().all()
    full = bench(faithful=faithful).loss().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16, faithful=faithful).loss().item() == pytest.approx(full, rel=0.05)
