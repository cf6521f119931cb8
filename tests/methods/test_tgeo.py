from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import nn

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.tgeo import fused_loss
from kdbench.methods.tgeo import TGeo
from kdbench.needs import State
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Network
from kdbench.signals import Context, Signals
from kdbench.task import Batch
from tests.methods.harness import knobs, normal, yaml
from tests.methods.real import Cut, training
from tests.toy import Net, Toy, same, weights

OTHER: dict[str, Any] = {"temperature": 3.0, "control": "fixed", "ratio": 0.1, "mean": "batch"}


def cut(batch: int = 6, dtype: torch.dtype = torch.float32, **options: Any) -> Cut:
    target = torch.arange(batch) % 5
    made = {r: Logits((3 * normal(batch, 5, name=r)).to(dtype), target=target) for r in ("student", "teacher")}
    return Cut("tgeo", made, **options)


def test_binds_to_the_logits_and_needs_one_class_a_sample_and_a_meta_cut():
    side = {"taps": {"body": "body"}}
    assert bind(TGeo, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert TGeo.requires == {"single_label", "meta"}


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("control", ["learned", "frozen_random", "fixed"])
def test_the_inner_loss_reaches_student_and_controller_alone(batch, control):
    made = cut(batch, control=control)
    made.term("inner").backward()
    assert made.leaves["student"].grad is not None
    assert made.leaves["student"].grad.any()
    assert made.leaves["teacher"].grad is None
    trainable = [p for p in made.method.parameters() if p.requires_grad]
    assert bool(trainable) == (control == "learned")
    assert all(p.grad is not None and p.grad.any() for p in trainable)


def test_the_student_does_not_learn_to_move_its_own_ratio():
    made = cut()
    (found,) = made.gradients("inner").values()
    s, t = (Logits(made.leaves[r], target=torch.arange(6) % 5) for r in ("student", "teacher"))
    ratio = made.method.ratio(s, t).detach()
    (expected,) = torch.autograd.grad(fused_loss(s.values, t.values, torch.arange(6) % 5, ratio), s.values)
    torch.testing.assert_close(found, expected)
    assert ratio.shape == (6,)
    assert ratio.std() > 0


@pytest.mark.parametrize("knob", knobs("tgeo"))
def test_every_knob_counts(knob):
    def value(**options):
        made = cut(**options)
        with torch.no_grad():
            made.method.after_step(made.signals(), State(0, 0, 0.0))
        made.leaves["teacher"].data.mul_(0.5)
        return made.term("inner").item()

    control = {"control": "fixed"} if knob == "ratio" else {}
    assert value(**control) != pytest.approx(value(**control, **{knob: OTHER[knob]}), rel=1e-5)


def test_a_fixed_ratio_has_no_controller_and_is_the_plain_sum():
    made, labels = cut(control="fixed", ratio=0.9, temperature=4.0), torch.arange(6) % 5
    assert not list(made.method.parameters())
    expected = fused_loss(made.leaves["student"], made.leaves["teacher"], labels, 0.9, 4.0)
    assert made.term("inner").item() == pytest.approx(expected.item())


def test_no_rows_low_precision_and_bad_options():
    assert cut(0).term("inner") == 0
    assert cut(0).term("inner").requires_grad
    assert cut(dtype=torch.bfloat16).term("inner").item() == pytest.approx(cut().term("inner").item(), rel=0.05)
    with pytest.raises(KDBenchError, match=r"method.ratio: found 1.5; input should be less than or equal to 1"):
        cut(ratio=1.5)
    with pytest.raises(KDBenchError, match=r"method.control: found 'none'; input should be 'learned', 'frozen_random'"):
        cut(control="none")


def batch_of(name: str, size: int) -> Batch:
    images = normal(size, 3, 8, 8, name=name, dtype=torch.float64)
    return Batch(images, torch.randint(5, (size,), generator=rng.generator(0, name)), torch.arange(size))


def test_the_gradient_of_the_controller_is_that_of_a_real_step():
    """Against central differences of the meta loss after one real SGD step, in float64."""
    with rng.scope(0, "tgeo", "nets"):
        student, teacher = Net(3).double().eval(), Net(4).double().eval().requires_grad_(False)
        method = instantiate("method", {k: v for k, v in yaml("tgeo").items() if k not in ENGINE_KEYS})
        train, meta = batch_of("train", 7), batch_of("meta", 5)
        cast = Cast(Toy(), method.roles, {"student": Network(Toy(), student), "teacher": Network(Toy(), teacher)})
        views = {role: {"main": meta, "train": train} for role in method.roles}
        with torch.no_grad():
            method.build(Signals(cast, views))
    method.double()
    outer = method.terms(Signals(cast, views), Context(State(0, 0, 0.0), 0, frozenset({"outer"}), lr=0.3))
    assert set(outer) == {"outer"}
    params = list(method.parameters())
    grads = torch.autograd.grad(outer["outer"], params)

    def after_a_step() -> float:
        net = copy.deepcopy(student)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
        s, t, y = net(train.inputs), teacher(train.inputs), train.targets
        with torch.no_grad():
            p, q, hot = s.softmax(1), t.softmax(1), torch.eye(5, dtype=torch.float64)[y]
            mean = torch.stack([q[y == c].mean(0) for c in y])
            sides = [mean - p, hot - p, q - p, q - hot, mean - q]
            a = method.controller(torch.cat([p, q, hot, mean, *(d**2 for d in sides)], 1)).sigmoid().squeeze(1)
        soft = (t / 1.5).softmax(1)
        kl = (soft * (soft.log() - (s / 1.5).log_softmax(1))).sum(1)
        loss = (a * 1.5**2 * kl + (1 - a) * nn.functional.cross_entropy(s, y, reduction="none")).mean()
        loss.backward()
        optimizer.step()
        return nn.functional.cross_entropy(net(meta.inputs), meta.targets).item()

    assert outer["outer"].item() == pytest.approx(after_a_step(), rel=1e-10)
    for draw in range(3):
        g = rng.generator(0, "tgeo", "direction", draw)
        way = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in params]
        ends = []
        for side in (1e-5, -1e-5):
            for p, d in zip(params, way, strict=True):
                p.data.add_(d, alpha=side)
            ends.append(after_a_step())
            for p, d in zip(params, way, strict=True):
                p.data.sub_(d, alpha=side)
        expected = (ends[0] - ends[1]) / 2e-5
        found = sum(float((g * d).sum()) for g, d in zip(grads, way, strict=True))
        assert abs(expected) > 1e-5
        assert found == pytest.approx(expected, rel=1e-5)


def controllers(trained: Any) -> Callback:
    class Keep(Callback):
        def on_train_start(self, trainer, module):
            trained.first = weights(trained.plugins["method"].controller)

    return Keep()


def test_a_learned_controller_moves_and_the_teacher_does_not(tmp_path):
    trained = training(tmp_path, "tgeo")
    teacher = weights(trained.cast.model("teacher"))
    manifest = trained.run(tmp_path, [controllers(trained)])
    assert same(weights(trained.cast.model("teacher")), teacher)
    assert not any(torch.equal(trained.first[n], v) for n, v in weights(trained.plugins["method"].controller).items())
    assert set(manifest["terms"]) == {"inner", "outer"}
    # The student on train and, stepped, on meta, then on train again; the teacher once.
    assert manifest["cost"]["student_passes"] == 3
    assert manifest["cost"]["teacher_passes"] == 1


def test_the_sums_are_those_of_all_samples_seen(tmp_path):
    trained = training(tmp_path, "tgeo", epochs=1)
    trained.run(tmp_path)
    loader, expected = trained.data.train_dataloader(), torch.zeros(5, 5)
    loader.sampler.set_epoch(0)
    for batch in loader:
        with torch.no_grad():
            for p, y in zip(trained.cast.model("teacher")(batch.inputs).softmax(1), batch.targets, strict=True):
                expected[y] += p
    method = trained.plugins["method"]
    torch.testing.assert_close(method.sums, expected)
    assert method.counts.sum() == 64


def test_a_random_controller_is_never_trained(tmp_path):
    trained = training(tmp_path, "tgeo", {"control": "frozen_random", "mean": "batch"})
    manifest = trained.run(tmp_path, [controllers(trained)])
    method = trained.plugins["method"]
    assert same(trained.first, weights(method.controller))
    assert not method.sums.any()
    assert set(manifest["terms"]) == {"inner"}
    assert manifest["cost"]["student_passes"] == 1


def test_a_fixed_ratio_is_distillation_with_these_weights(tmp_path):
    keys = {"control": "fixed", "ratio": 0.9, "temperature": 4.0}
    runs = {"tgeo": training(tmp_path / "tgeo", "tgeo", keys), "kd": training(tmp_path / "kd", "kd")}
    for name, trained in runs.items():
        trained.run(tmp_path / name)
    found, expected = (weights(trained.cast.model("student")) for trained in runs.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_an_interrupted_training_is_an_uninterrupted_one(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.current_epoch == 1:
                raise InterruptedError

    whole, resumed = training(tmp_path / "whole", "tgeo"), training(tmp_path / "resumed", "tgeo")
    whole.run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        resumed.run(tmp_path / "resumed", [Stop()])
    resumed = training(tmp_path / "resumed", "tgeo")
    resumed.run(tmp_path / "resumed")
    assert same(weights(whole.plugins["method"]), weights(resumed.plugins["method"]))
    assert same(weights(whole.cast.model("student")), weights(resumed.cast.model("student")))
