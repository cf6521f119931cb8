from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits, Vector
from kdbench.functional.crd import contrast_logits, momentum_update, nce_loss
from kdbench.methods.crd import CRD
from kdbench.needs import State
from kdbench.task import DatasetInfo, Task
from kdbench.training.fit import Training
from tests import toy
from tests.methods import harness
from tests.methods.harness import Bench, check_deterministic, differ, knobs, normal, yaml

OTHER: dict[str, Any] = {
    "embed_dim": 16,
    "negatives": 3,
    "temperature": 0.5,
    "momentum": 0.9,
    "bank_dtype": "bfloat16",
}
SIZE = 40


@pytest.fixture(autouse=True)
def sized(monkeypatch):
    class Sized(Task):
        def dataset(self) -> DatasetInfo:
            return DatasetInfo("sized", True, "", {"train": SIZE})

    monkeypatch.setattr(harness, "Task", Sized)


def bench(batch: int = 4, labels: bool = True, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    pooled = {name: Vector(normal(batch, d, name=name).to(dtype)) for d, name in ((6, "s"), (10, "t"))}
    logits = Logits(normal(batch, 3), target=torch.arange(batch) % 3 if labels else None)
    return Bench("crd", {"pooled": pooled["s"], "logits": logits}, {"pooled": pooled["t"]}, **options)


def step(made: Bench, number: int = 0) -> Tensor:
    """One training step without an optimizer."""
    loss = made.loss(number)
    with torch.no_grad():
        made.method.after_step(made.signals(number), State(0, number, 0.0))
    return loss


def state(made: Bench) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in made.method.named_buffers()}


def test_binds_to_the_pooled_feature():
    side = {"taps": {"stem": "stem", "body": "body", "pooled": "head:input"}}
    found = bind(CRD, toy.Toy, {"name": "toy", "student": side, "teacher": side})
    assert found == {"pooled": "pooled", "logits": "logits"}


def test_equation(monkeypatch):
    """Both directions, with Z from the first step, against the banks as they were."""
    made = bench()
    index = torch.tensor([[0, 7, 30], [1, 5, 5], [2, 39, 0], [3, 1, 8]])
    monkeypatch.setattr("kdbench.methods.crd.draw_negatives", lambda *_: index[:, 1:])
    sides = (made.student[0], made.method.embed_student), (made.teacher[0], made.method.embed_teacher)
    v_s, v_t = (torch.nn.functional.normalize(x @ m.weight.T + m.bias, dim=1).detach() for x, m in sides)
    log_z = None
    for number in range(2):
        before = state(made)
        logits = [
            contrast_logits(v_s, before["bank_teacher"], index),
            contrast_logits(v_t, before["bank_student"], index),
        ]
        log_z = log_z or [(x.exp().mean() * SIZE).log() for x in logits]
        expected = sum(nce_loss(x - z, SIZE).item() for x, z in zip(logits, log_z, strict=True))
        assert step(made, number).item() == pytest.approx(expected, rel=1e-5)
        after = state(made)
        for side, v in (("student", v_s), ("teacher", v_t)):
            old, new = before[f"bank_{side}"], after[f"bank_{side}"]
            torch.testing.assert_close(new[:4], momentum_update(old[:4], v))
            assert torch.equal(new[4:], old[4:])
        torch.testing.assert_close(after["log_z"], torch.stack(log_z))
        assert after["classes"][:5].tolist() == [0, 1, 2, 0, -1]


def test_the_bank_is_the_only_thing_that_the_next_step_sees():
    made = bench()
    assert made.loss() == made.loss()
    first = step(made)
    assert made.loss() < first
    assert all(not b.requires_grad for b in made.method.buffers())
    # No step was taken since the last update: there is nothing to keep.
    made.method._seen = None
    before = state(made)
    made.method.after_step(made.signals(), State(0, 1, 0.0))
    assert all(torch.equal(before[n], b) for n, b in state(made).items())


def test_a_rehearsal_leaves_no_trace():
    made = bench()
    before = state(made)
    made.method.eval()
    step(made)
    assert all(torch.equal(before[n], b) for n, b in state(made).items())


@pytest.mark.parametrize("options", [{}, {"labels": False}, {"bank_dtype": "bfloat16"}, {"batch": 1}])
def test_gradients_reach_both_embeddings(options):
    made = bench(**options)
    assert set(made.trainable()) == {f"embed_{side}.{p}" for side in ("student", "teacher") for p in ("weight", "bias")}
    made.loss().backward()
    for leaf in (made.student[0], *made.trainable().values()):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()
    assert made.teacher[0].grad is None
    check_deterministic(bench(**options))


def test_other_steps_draw_other_negatives():
    made = bench(negatives=5)
    assert made.loss(0) != made.loss(1)


@pytest.mark.parametrize("knob", knobs("crd"))
def test_every_knob_counts(knob):
    first, second = bench(), bench(**{knob: OTHER[knob]})
    for made in (first, second):
        step(made)
    assert differ(first.outcome(1), second.outcome(1))


def test_labels_that_do_not_count_are_unknown():
    made = bench()
    for views in made.views.values():
        views["main"] = replace(views["main"], supervised=torch.tensor([True, False, True, False]))
    step(made)
    assert made.method.classes[:4].tolist() == [0, -1, 2, -1]


def test_ids_beyond_the_bank():
    made = bench()
    for views in made.views.values():
        views["main"] = replace(views["main"], ids=torch.tensor([0, 1, SIZE, 2]))
    with pytest.raises(KDBenchError, match="found sample id 40, expected at most 39"):
        made.loss()


def test_empty_batch_and_low_precision():
    empty = bench(0)
    assert step(empty) == 0
    assert empty.loss().requires_grad
    assert not empty.method.estimated
    full = bench().loss().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(full, rel=0.05)
    assert bench(bank_dtype="bfloat16").loss().item() == pytest.approx(full, rel=0.05)


def test_trains_on_the_engine(tmp_path: Path):
    plugin = {key: value for key, value in yaml("crd").items() if key != "name"} | {"negatives": 20}
    recipe = replace(toy.recipe("KD", epochs=6), plugins=toy.specs(method=plugin))
    training = Training(recipe, toy.Toy(), {"teacher": toy.teacher_file(tmp_path)})
    manifest = training.run(tmp_path)
    method: Any = training.plugins["method"]
    assert manifest["terms"]["crd"]["last"] < manifest["terms"]["crd"]["first"]
    assert method.estimated
    torch.testing.assert_close(method.bank_student.norm(dim=1), torch.ones(64))
    assert torch.equal(method.classes, toy.Patterns(64, "train").labels)
