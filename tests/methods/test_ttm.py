from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.ttm import ttm_loss
from kdbench.methods.ttm import TTM
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal
from tests.toy import Toy

OTHER: dict[str, Any] = {"exponent": 0.5, "weighted": True}


def bench(batch: int = 6, dtype: torch.dtype = torch.float32, law: Any = "categorical", **options: Any) -> Bench:
    student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype), law=law) for n in ("s", "t"))
    return Bench("ttm", {"logits": student}, {"logits": teacher}, **options)


def test_binds_to_the_logits_of_a_softmax_head():
    side = {"taps": {"body": "body"}}
    assert bind(TTM, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert "single_label" in TTM.requires
    with pytest.raises(KDBenchError, match="^TTM compares softmax distributions: found law='bernoulli'"):
        bench(law="bernoulli").loss()


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1, weighted=True))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("ttm"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


@pytest.mark.parametrize("weighted", [False, True])
def test_is_the_loss_of_the_rows_and_zero_at_the_transformed_teacher(weighted):
    made = bench(weighted=weighted)
    expected = ttm_loss(made.student[0], made.teacher[0], 0.1, weighted=weighted)
    assert made.loss().item() == pytest.approx(expected.item())
    values = normal(4, 5)
    same = Bench("ttm", {"logits": Logits(0.1 * values)}, {"logits": Logits(values)}, weighted=weighted)
    assert same.loss().item() == pytest.approx(0, abs=1e-6)


def test_masked_rows_do_not_count_and_weights_do():
    values = {name: normal(2, 3, 5, name=name) for name in ("s", "t")}
    mask = torch.tensor([[True, True, False], [False, True, False]])
    weight = torch.tensor([[1.0, 2.0, 9.0], [9.0, 0.0, 9.0]])
    student, teacher = (Logits(v, mask=mask, weight=weight) for v in values.values())
    made = Bench("ttm", {"logits": student}, {"logits": teacher})
    expected = ttm_loss(values["s"][0, :2], values["t"][0, :2], weight=torch.tensor([1.0, 2.0]))
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_rows_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.exponent: found 0.0; input should be greater than 0"):
        bench(exponent=0.0)
