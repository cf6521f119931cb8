from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Callback

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.tf_kd import self_training_loss, virtual_teacher_loss
from kdbench.methods.tf_kd import TfKD
from tests.methods.harness import knobs, normal
from tests.methods.real import Cut, training
from tests.toy import Toy, same, weights
from tests.toy import training as plain_training

OTHER: dict[str, Any] = {"variant": "reg", "temperature": 2.0, "correct_prob": 0.9, "faithful": "code"}


def cut(batch: int = 6, dtype: torch.dtype = torch.float32, **options: Any) -> Cut:
    target = torch.arange(batch) % 5
    made = {r: Logits((3 * normal(batch, 5, name=r)).to(dtype), target=target) for r in ("student", "teacher")}
    return Cut("tf_kd", made, **options)


def test_binds_to_the_logits_and_needs_one_class_a_sample():
    side = {"taps": {"body": "body"}}
    assert bind(TfKD, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert TfKD.requires == {"single_label"}


def test_terms_are_the_losses():
    made = cut()
    s, t = made.leaves["student"], made.leaves["teacher"]
    assert made.term("tf_kd").item() == pytest.approx(self_training_loss(s, t, 20.0).item())
    labels = torch.arange(6) % 5
    assert cut(variant="reg").term("tf_kd").item() == pytest.approx(virtual_teacher_loss(s, labels, 20.0, 0.99).item())


@pytest.mark.parametrize("variant", ["self", "reg"])
@pytest.mark.parametrize("batch", [1, 6])
def test_gradients_reach_the_student_alone(variant, batch):
    grads = cut(batch, variant=variant).gradients("tf_kd")
    assert set(grads) == {"student"}
    assert grads["student"].isfinite().all()
    assert grads["student"].any()


@pytest.mark.parametrize("knob", knobs("tf_kd"))
def test_every_knob_counts(knob):
    variant: dict[str, Any] = {} if knob == "variant" else {"variant": "reg"}
    first, second = cut(**variant).term("tf_kd").item(), cut(**variant, **{knob: OTHER[knob]}).term("tf_kd").item()
    assert first != pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("variant", ["self", "reg"])
def test_low_precision_and_no_rows(variant):
    full = cut(variant=variant).term("tf_kd").item()
    assert cut(dtype=torch.bfloat16, variant=variant).term("tf_kd").item() == pytest.approx(full, rel=0.05)
    assert cut(0, variant=variant).term("tf_kd") == 0
    assert cut(0, variant=variant).term("tf_kd").requires_grad


def test_masked_rows_do_not_count():
    values, target = normal(3, 5, name="s"), torch.tensor([0, 3, 4])
    mask = torch.tensor([True, False, True])
    made = {r: Logits(values, mask=mask, target=target) for r in ("student", "teacher")}
    expected = virtual_teacher_loss(values[mask], target[mask]).item()
    assert Cut("tf_kd", made, variant="reg").term("tf_kd").item() == pytest.approx(expected)


def test_bad_options_are_one_line():
    with pytest.raises(KDBenchError, match=r"method.variant: found 'none'; input should be 'self' or 'reg'"):
        cut(variant="none")
    with pytest.raises(KDBenchError, match=r"method.correct_prob: found 1; input should be less than 1"):
        cut(correct_prob=1)
    sigmoid = {r: Logits(normal(2, 5), law="bernoulli") for r in ("student", "teacher")}
    with pytest.raises(KDBenchError, match="TfKD compares softmax distributions"):
        Cut("tf_kd", sigmoid).term("tf_kd")
    with pytest.raises(KDBenchError, match="true class of each row is not known"):
        Cut("tf_kd", {r: Logits(normal(2, 5)) for r in ("student", "teacher")}, variant="reg").term("tf_kd")


class Starts(Callback):
    """Keeps the weights of student and teacher at the start of each stage."""

    def __init__(self, trained: Any) -> None:
        self.trained = trained
        self.found: dict[str, dict[str, dict[str, torch.Tensor]]] = {}

    def on_train_start(self, trainer, module):
        self.found[module.stage.name] = {r: weights(self.trained.cast.model(r)) for r in ("student", "teacher")}


def test_self_training_is_taught_by_the_student_trained_alone(tmp_path):
    """The first stage is the scratch twin, bit for bit; the second starts afresh with it as its teacher."""
    twin = plain_training(tmp_path / "twin")
    twin.run(tmp_path / "twin")
    trained = training(tmp_path / "run", "tf_kd")
    starts = Starts(trained)
    manifest = trained.run(tmp_path / "run", [starts])
    assert same(starts.found["distil"]["teacher"], weights(twin.cast.model("student")))
    assert same(starts.found["distil"]["teacher"], weights(trained.cast.model("teacher")))
    assert same(starts.found["distil"]["student"], starts.found["teacher"]["student"])
    assert not same(weights(trained.cast.model("student")), weights(twin.cast.model("student")))
    assert manifest["cost"]["epochs"] == 4
    assert manifest["cost"]["student_passes"] == 1
    assert manifest["cost"]["teacher_passes"] == 0.5
    assert {n: t["weight"] for n, t in manifest["terms"].items()} == {"task.alone": 1.0, "task": 0.1, "tf_kd": 0.9}


def test_the_virtual_teacher_asks_no_network(tmp_path):
    trained = training(tmp_path, "tf_kd", {"variant": "reg"})
    manifest = trained.run(tmp_path)
    assert manifest["cost"]["epochs"] == 2
    assert manifest["cost"]["teacher_passes"] == 0
    assert set(manifest["terms"]) == {"task", "tf_kd"}
    assert manifest["terms"]["tf_kd"]["last"] < manifest["terms"]["tf_kd"]["first"]
