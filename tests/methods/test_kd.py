from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits, Values
from kdbench.functional.divergence import gaussian_kl
from kdbench.functional.kd import kd_loss
from kdbench.methods.dml import DML
from kdbench.methods.kd import CTKD, KD, LSKD
from kdbench.needs import State
from kdbench.signals import EVERY, Context
from kdbench.task import Task
from kdbench.training.fit import Training
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, knobs, normal, yaml
from tests.toy import Toy, recipe, specs, teacher_file

NAMES = ["kd", "lskd", "ctkd"]
OTHER: dict[str, dict[str, Any]] = {
    "kd": {"temperature": 2.0, "standardize": True},
    "lskd": {"temperature": 4.0, "standardize": False},
    "ctkd": {"temperature": 4.0, "standardize": True},
}
LEARNED: dict[str, Any] = {"low": 2.0, "span": 5.0, "start": -1.0, "ramp": 0.5}


class Later(Bench):
    """A bench after 2% of training, where a learned temperature moves."""

    def terms(self, step: int = 0) -> dict[str, Tensor]:
        context = Context(State(0, step, 0.02), 0, frozenset({EVERY}))
        return self.method.terms(self.signals(step), context)


def bench(
    name: str = "kd",
    batch: int = 6,
    dtype: torch.dtype = torch.float32,
    law: Any = "categorical",
    weight: Tensor | None = None,
    **options: Any,
) -> Bench:
    student, teacher = (Logits((3 * normal(batch, 5, name=n)).to(dtype), law=law, weight=weight) for n in ("s", "t"))
    return Later(name, {"logits": student}, {"logits": teacher}, **options)


def test_binds_to_the_logits():
    side = {"taps": {"body": "body"}}
    pair = {"name": "toy", "student": side, "teacher": side}
    assert bind(KD, Toy, pair) == bind(LSKD, Toy, pair) == {"logits": "logits"}


def test_only_lskd_wants_a_softmax_head():
    class Sigmoid(Task):
        name = "sigmoid"
        kinds = Toy.kinds

    pair: dict[str, Any] = {"name": "toy", "student": {}, "teacher": {}}
    assert bind(KD, Sigmoid, pair)
    with pytest.raises(KDBenchError, match="^LSKD requires single_label, which task sigmoid lacks$"):
        bind(LSKD, Sigmoid, pair)


class Regression(Task):
    name = "regression"

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, type[Feature]]:
        return {"height": Values}


@pytest.mark.parametrize("method", [KD, DML])
def test_binds_to_predicted_values_where_there_are_no_scores(method):
    assert bind(method, Regression, {"name": "toy", "student": {}, "teacher": {}}) == {"logits": "height"}


@pytest.mark.parametrize("method", [CTKD, LSKD])
def test_values_have_neither_a_temperature_nor_a_z_score(method):
    with pytest.raises(KDBenchError, match="needs Logits|requires single_label"):
        bind(method, Regression, {"name": "toy", "student": {}, "teacher": {}})


def values(law: Any, weight: Tensor | None = None, batch: int = 6, **options: Any) -> Bench:
    student, teacher = (Values(normal(batch, 4, name=n), law=law, weight=weight) for n in ("s", "t"))
    return Bench("kd", {"logits": student}, {"logits": teacher}, **options)


@pytest.mark.parametrize("law", ["plain", "gaussian"])
def test_predicted_values_are_matched_without_a_temperature(law):
    weight = torch.tensor([1.0, 0, 3, 1, 1, 2])
    made = values(law, weight)
    s, t = made.student[0], made.teacher[0]
    rows = gaussian_kl(s, t) if law == "gaussian" else (s - t).square().sum(1)
    assert made.loss().item() == pytest.approx(((weight * rows).sum() / weight.sum()).item(), rel=1e-6)
    assert not differ(made.outcome(), values(law, weight, temperature=2.0).outcome())
    check_gradients(values(law))
    check_deterministic(values(law))
    empty = values(law, batch=0).loss()
    assert empty == 0
    assert empty.requires_grad


@pytest.mark.parametrize("options", [{"temperature": "adversarial"}, {"standardize": True}])
def test_options_of_class_scores_are_refused_for_values(options):
    with pytest.raises(KDBenchError, match="are of class scores, and this task gives predicted values: leave both out"):
        values("plain", **options)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_determinism(name):
    check_gradients(bench(name))
    check_gradients(bench(name, batch=1))
    check_deterministic(bench(name))


@pytest.mark.parametrize("name", ["kd", "ctkd"])
def test_gradients_of_a_sigmoid_head(name):
    check_gradients(bench(name, law="bernoulli"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("knob", knobs("kd"))
def test_every_knob_counts(name, knob):
    assert knobs(name) == knobs("kd")
    if knob in LEARNED:
        first = bench(name, temperature="adversarial")
        assert differ(first.outcome(), bench(name, temperature="adversarial", **{knob: LEARNED[knob]}).outcome())
    else:
        assert differ(bench(name).outcome(), bench(name, **{knob: OTHER[name][knob]}).outcome())


@pytest.mark.parametrize("law", ["categorical", "bernoulli"])
def test_is_the_loss_of_the_rows_and_zero_at_the_teacher(law):
    made = bench(law=law)
    expected = kd_loss(made.student[0], made.teacher[0], 4.0, law=law)
    assert made.loss().item() == pytest.approx(expected.item())
    same = Logits(normal(4, 5), law=law)
    assert Bench("kd", {"logits": same}, {"logits": same}).loss().item() == pytest.approx(0, abs=1e-6)


def test_recipes():
    """Each is its own equation: z-scored logits at T = 2; T = 1 + 20 sigmoid(1)."""
    weight = torch.tensor([1.0, 0, 3, 1, 1, 2])
    made = bench("lskd", weight=weight)
    s, t = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) / 2 for z in (made.student[0], made.teacher[0]))
    rows = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)
    assert made.loss().item() == pytest.approx((4 * (weight * rows).sum() / weight.sum()).item(), rel=1e-5)
    made = bench("ctkd")
    temperature = 1 + 20 / (1 + torch.exp(torch.tensor(-1.0)))
    s, t = made.student[0] / temperature, made.teacher[0] / temperature
    rows = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)
    assert made.loss().item() == pytest.approx((temperature**2 * rows.mean()).item(), rel=1e-4)
    assert yaml("lskd")["weights"] == {"task": 0.1, "kd": 9.0}
    assert yaml("ctkd")["weights"] == yaml("kd")["weights"]


def test_learned_temperature_ascends_the_loss():
    made = bench("ctkd", ramp=0.0, start=0.0)
    before = made.loss()
    (theta,) = made.trainable().values()
    before.backward()
    assert theta.grad is not None
    with torch.no_grad():
        theta -= 0.5 * theta.grad.sign()
    assert made.loss() > before
    # Only the learned temperature is trained by the method.
    assert list(made.trainable()) == ["theta"]
    assert not bench().trainable()


def test_learned_temperature_trains_in_the_engine(tmp_path):
    """From a first step at which its gradient is still zero."""
    spec = {k: v for k, v in yaml("ctkd").items() if k != "name"} | {"ramp": 0.1}
    found = replace(recipe("KD"), plugins=specs(method=spec))
    training = Training(found, Toy(), {"teacher": teacher_file(tmp_path)})
    manifest = training.run(tmp_path)
    assert manifest["terms"].keys() == {"task", "kd"}
    assert manifest["cost"]["added_params"] == 1
    (theta,) = training.plugins["method"].parameters()
    assert float(theta.detach()) != spec["start"]


def test_masked_rows_do_not_count_and_weights_do():
    values = {name: normal(2, 3, 5, name=name) for name in ("s", "t")}
    mask = torch.tensor([[True, True, False], [False, True, False]])
    weight = torch.tensor([[1.0, 2.0, 9.0], [9.0, 0.0, 9.0]])
    student, teacher = (Logits(v, mask=mask, weight=weight) for v in values.values())
    made = Bench("kd", {"logits": student}, {"logits": teacher})
    expected = kd_loss(values["s"][0, :2], values["t"][0, :2], 4.0, weight=torch.tensor([1.0, 2.0]))
    assert made.loss().item() == pytest.approx(expected.item(), rel=1e-6)
    grad = made.gradients()["student.0"]
    assert grad[0, :2].all()
    assert not grad[0, 2].any()
    assert not grad[1].any()


def test_of_a_map_it_is_pixel_wise_kd_of_the_positions_that_count():
    """``CriterionKD`` of winycg/CIRKD, run outside of this repository on maps of (2, 5, 12, 24), (4, 19, 24, 48) and
    (1, 3, 7, 5), all positions distilled, gave the same: to 3e-16 (gradients 5e-16) in float64, 1e-7 (2e-7) in float32.
    """
    values = [3 * normal(2, 5, 4, 6, name=n) for n in ("s", "t")]
    mask = torch.rand(2, 4, 6, generator=rng.generator(0, "mask")) < 0.7
    for counts in (mask, torch.ones_like(mask)):
        log_s, log_t = (z.double().log_softmax(1) for z in values)
        pixels = (log_t.exp() * (log_t - log_s)).sum(1)
        student, teacher = (Logits(z.clone(), class_dim=1, mask=counts) for z in values)
        made = Bench("kd", {"logits": student}, {"logits": teacher}, temperature=1.0)
        assert made.loss().item() == pytest.approx(pixels[counts].mean().item(), rel=1e-6)
        assert not made.gradients()["student.0"].where(~counts[:, None], 0.0).any()
    ignored = Logits(values[0], class_dim=1, mask=torch.zeros_like(mask))
    assert Bench("kd", {"logits": ignored}, {"logits": ignored}).loss() == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_and_low_precision(name):
    empty = bench(name, batch=0)
    assert empty.loss() == 0
    assert empty.loss().requires_grad
    assert bench(name, dtype=torch.bfloat16).loss().item() == pytest.approx(bench(name).loss().item(), rel=0.05)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.temperature: found 0.0; input should be greater than 0"):
        bench(temperature=0.0)
    with pytest.raises(KDBenchError, match=r"method.ramp: found 2.0; input should be less than or equal to 1"):
        bench(ramp=2.0)
    with pytest.raises(KDBenchError, match="set standardize=False"):
        bench(law="bernoulli", standardize=True).loss()
    with pytest.raises(KDBenchError, match="set standardize=False"):
        bench("lskd", law="bernoulli").loss()
