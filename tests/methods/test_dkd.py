from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.dkd import nckd_loss, tckd_loss
from kdbench.methods.dkd import DKD
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {"temperature": 2.0}


class Weighed(Bench):
    """A bench whose loss is the sum of the terms under the weights of the YAML file, warmed up."""

    def loss(self, step: int = 0) -> Tensor:
        terms, weights = self.terms(step), yaml(self.name)["weights"]
        assert terms.keys() == weights.keys() - {"task"}
        return torch.stack([weights[name]["value"] * value for name, value in terms.items()]).sum()


def bench(batch: int = 6, dtype: torch.dtype = torch.float32, law: Any = "categorical", **options: Any) -> Bench:
    target = torch.arange(batch) % 5
    student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype), law=law, target=target) for n in ("s", "t"))
    return Weighed("dkd", {"logits": student}, {"logits": teacher}, **options)


def test_binds_to_the_logits_of_a_softmax_head():
    side = {"taps": {"body": "body"}}
    assert bind(DKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert "single_label" in DKD.requires
    with pytest.raises(KDBenchError, match="^DKD compares softmax distributions: found law='bernoulli'"):
        bench(law="bernoulli").loss()


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("dkd"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_is_the_loss_of_the_rows_and_zero_at_the_teacher():
    made = bench()
    rows = (made.student[0], made.teacher[0], torch.arange(6) % 5, 4.0)
    expected = tckd_loss(*rows) + 8 * nckd_loss(*rows)
    assert made.loss().item() == pytest.approx(expected.item())
    same = Logits(normal(4, 5), target=torch.arange(4))
    assert Weighed("dkd", {"logits": same}, {"logits": same}).loss().item() == pytest.approx(0, abs=1e-5)


def test_masked_rows_do_not_count_and_weights_do():
    values = {name: normal(2, 3, 5, name=name) for name in ("s", "t")}
    mask = torch.tensor([[True, True, False], [False, True, False]])
    weight = torch.tensor([[1.0, 2.0, 9.0], [9.0, 0.0, 9.0]])
    target = torch.tensor([[4, 1, 0], [0, 2, 0]])
    student, teacher = (Logits(v, mask=mask, weight=weight, target=target) for v in values.values())
    made = Weighed("dkd", {"logits": student}, {"logits": teacher})
    rows = (values["s"][0, :2], values["t"][0, :2], torch.tensor([4, 1]))
    terms = made.terms()
    assert terms["tckd"].item() == pytest.approx(tckd_loss(*rows, weight=torch.tensor([1.0, 2.0])).item(), rel=1e-5)
    assert terms["nckd"].item() == pytest.approx(nckd_loss(*rows, weight=torch.tensor([1.0, 2.0])).item(), rel=1e-5)
    grad = made.gradients()["student.0"]
    assert grad[0, :2].all()
    assert not grad[0, 2].any()
    assert not grad[1].any()


def test_the_true_class_must_be_known():
    logits = Logits(normal(4, 5))
    with pytest.raises(KDBenchError, match="the true class of each row is not known here"):
        Bench("dkd", {"logits": logits}, {"logits": logits}).terms()


def test_no_rows_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.temperature: found 0.0; input should be greater than 0"):
        bench(temperature=0.0)
