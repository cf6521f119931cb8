from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.sinkd import sinkhorn_loss
from kdbench.methods.sinkd import SinKD
from tests.methods.harness import Bench, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {"temperature": 1.0, "eps": 0.5, "iterations": 2, "debiased": True, "max_rows": 4}


def bench(batch: int = 6, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype)) for n in ("s", "t"))
    return Bench("sinkd", {"logits": student}, {"logits": teacher}, **options)


def test_binds_to_the_logits():
    side = {"taps": {"body": "body"}}
    assert bind(SinKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}


def test_terms_are_those_of_the_yaml_file():
    made = bench()
    terms = made.terms()
    assert set(terms) == set(yaml("sinkd")["weights"]) - {"task"}
    student, teacher = made.student[0], made.teacher[0]
    assert terms["kd"].item() == pytest.approx(categorical_kl(student, teacher, 2.0).mean().item())
    assert terms["sinkhorn"].item() == pytest.approx(sinkhorn_loss(student, teacher, 2.0).item())


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("term", ["kd", "sinkhorn"])
def test_gradients_reach_the_student_alone(batch, term):
    made = bench(batch)
    made.terms()[term].backward()
    assert made.student[0].grad is not None
    assert made.student[0].grad.isfinite().all()
    assert made.student[0].grad.any()
    assert made.teacher[0].grad is None


@pytest.mark.parametrize("knob", knobs("sinkd"))
def test_every_knob_counts(knob):
    first, second = bench().terms()["sinkhorn"], bench(**{knob: OTHER[knob]}).terms()["sinkhorn"]
    assert first.item() != pytest.approx(second.item(), rel=1e-5)


def test_more_rows_than_the_plan_holds_are_sampled_anew_at_each_step():
    made = bench(64, max_rows=8)
    values = [made.terms(step)["sinkhorn"].item() for step in (0, 0, 1)]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_no_rows_and_low_precision():
    empty = bench(batch=0).terms()
    assert all(value == 0 and value.requires_grad for value in empty.values())
    full, low = bench().terms(), bench(dtype=torch.bfloat16).terms()
    assert all(low[name].item() == pytest.approx(full[name].item(), rel=0.05) for name in full)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.eps: found 0.0; input should be greater than 0"):
        bench(eps=0.0)
