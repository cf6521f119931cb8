from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.dist import inter_class_loss, intra_class_loss
from kdbench.methods.dist import DIST
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy

OTHER: dict[str, Any] = {"temperature": 2.0}


class Weighed(Bench):
    """A bench whose loss is the sum of the terms under the weights of the YAML file."""

    def loss(self, step: int = 0) -> Tensor:
        terms, weights = self.terms(step), yaml(self.name)["weights"]
        assert terms.keys() == weights.keys() - {"task"}
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def bench(batch: int = 6, dtype: torch.dtype = torch.float32, law: Any = "categorical", **options: Any) -> Bench:
    student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype), law=law) for n in ("s", "t"))
    return Weighed("dist", {"logits": student}, {"logits": teacher}, **options)


def test_binds_to_the_logits_of_a_softmax_head():
    side = {"taps": {"body": "body"}}
    assert bind(DIST, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert "single_label" in DIST.requires
    with pytest.raises(KDBenchError, match="^DIST compares softmax distributions: found law='bernoulli'"):
        bench(law="bernoulli").loss()


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())


@pytest.mark.parametrize("knob", knobs("dist"))
def test_every_knob_counts(knob):
    assert differ(bench().outcome(), bench(**{knob: OTHER[knob]}).outcome())


def test_is_the_loss_of_the_rows_and_zero_at_the_teacher():
    made = bench()
    rows = (made.student[0], made.teacher[0], 4.0)
    expected = 2 * inter_class_loss(*rows) + 2 * intra_class_loss(*rows)
    assert made.loss().item() == pytest.approx(expected.item())
    same = Logits(3 * normal(4, 5))
    assert Weighed("dist", {"logits": same}, {"logits": same}).loss().item() == pytest.approx(0, abs=1e-3)


def test_masked_rows_do_not_count_and_weights_do():
    values = {name: 3 * normal(2, 3, 5, name=name) for name in ("s", "t")}
    mask = torch.tensor([[True, True, False], [False, True, False]])
    weight = torch.tensor([[1.0, 2.0, 9.0], [9.0, 0.0, 9.0]])
    student, teacher = (Logits(v, mask=mask, weight=weight) for v in values.values())
    terms = Weighed("dist", {"logits": student}, {"logits": teacher}).terms()
    expected = inter_class_loss(values["s"][0, :2], values["t"][0, :2], weight=torch.tensor([1.0, 2.0]))
    assert terms["inter"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["intra"].item() == pytest.approx(intra_class_loss(values["s"][mask], values["t"][mask]).item())


def test_no_rows_and_low_precision():
    empty = bench(batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.temperature: found 0.0; input should be greater than 0"):
        bench(temperature=0.0)
