from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Callback
from torch import nn

from kdbench.base import rng
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.functional.self_guided import self_guided_loss
from kdbench.methods.self_guided import SelfGuided
from kdbench.optim import cosine, make_optimizer
from kdbench.training.layout import channels_last
from tests.methods.harness import Bench, check_deterministic, check_gradients, differ, normal
from tests.methods.real import training
from tests.toy import SGD, Toy, same, weights


def bench(batch: int = 6, dtype: torch.dtype = torch.float32, **options: Any) -> Bench:
    target = torch.arange(batch) % 5
    student, teacher = (Logits((2 * normal(batch, 5, name=n)).to(dtype), target=target) for n in ("s", "t"))
    return Bench("self_guided", {"logits": student}, {"logits": teacher}, **options)


def test_binds_to_the_logits_and_needs_one_class_a_sample():
    side = {"taps": {"body": "body"}}
    assert bind(SelfGuided, Toy, {"name": "toy", "student": side, "teacher": side}) == {"logits": "logits"}
    assert SelfGuided.requires == {"single_label"}


def test_gradients_and_determinism():
    check_gradients(bench())
    check_gradients(bench(batch=1))
    check_deterministic(bench())


def test_is_the_loss_and_the_first_generation_has_no_teacher():
    made, labels = bench(), torch.arange(6) % 5
    assert made.loss().item() == pytest.approx(self_guided_loss(made.student[0], labels, made.teacher[0], 0.6).item())
    made.method.enter(made.method.stages()[0], made.signals())
    assert made.loss().item() == pytest.approx(self_guided_loss(made.student[0], labels).item())
    made.method.enter(made.method.stages()[1], made.signals())
    assert made.loss().item() == pytest.approx(self_guided_loss(made.student[0], labels, made.teacher[0], 0.6).item())


def test_every_knob_counts():
    assert differ(bench().outcome(), bench(alpha=0.3).outcome())
    assert [s.name for s in bench(generations=1).method.stages()] == ["generation_0", "generation_1"]
    assert len(bench(generations=5).method.stages()) == 6
    assert all(s.fresh and s.roles == {"teacher": "student"} for s in bench().method.stages()[1:])


def test_no_rows_low_precision_and_bad_options():
    assert bench(batch=0).loss() == 0
    assert bench(batch=0).loss().requires_grad
    assert bench(dtype=torch.bfloat16).loss().item() == pytest.approx(bench().loss().item(), rel=0.05)
    with pytest.raises(KDBenchError, match=r"method.alpha: found 'closed_form'; input should be a valid number"):
        bench(alpha="closed_form")
    with pytest.raises(KDBenchError, match=r"method.generations: found 0; input should be greater than 0"):
        bench(generations=0)


def generations(trained: Any, number: int, alpha: float, epochs: int = 2) -> list[dict[str, torch.Tensor]]:
    """The same generations as plain loops; returns the last weights of each."""
    made, teacher = [], None
    for _ in range(number + 1):
        with rng.scope(0, "init", "student"):
            net = Toy().build({"width": 4, "dropout": 0.2})
        channels_last(net.train())
        loader = trained.data.train_dataloader()
        optimizer = make_optimizer(SGD, [{"params": list(net.parameters())}])
        scheduler = cosine(optimizer, epochs * len(loader), warmup=0.2)
        step = 0
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                torch.manual_seed(rng.derive(0, "forward", "student", "main", step))
                p, y = net(batch.inputs).softmax(1), nn.functional.one_hot(batch.targets, 5)
                loss = (p - y).square().sum(1).mean()
                if teacher is not None:
                    with torch.no_grad():
                        q = teacher(batch.inputs).softmax(1)
                    loss = alpha * loss + (1 - alpha) * (p - q).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                step += 1
        teacher = net.eval()
        made.append(weights(net))
    return made


def test_training_is_generations_of_plain_loops(tmp_path):
    trained = training(tmp_path / "engine", "self_guided", {"alpha": 0.3})
    taught: dict[str, dict[str, torch.Tensor]] = {}

    class Look(Callback):
        def on_train_end(self, trainer, module):
            taught[module.stage.name] = weights(trained.cast.model("teacher"))

    manifest = trained.run(tmp_path / "engine", [Look()])
    first, second, third = generations(training(tmp_path / "loop", "self_guided"), 2, 0.3)
    for expected, found in (
        (first, taught["generation_1"]),
        (second, taught["generation_2"]),
        (third, weights(trained.cast.model("student"))),
    ):
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    assert not same(first, second)
    assert manifest["cost"]["epochs"] == 6
    assert manifest["cost"]["student_passes"] == 1
    assert manifest["cost"]["teacher_passes"] == pytest.approx(2 / 3)
    assert set(manifest["terms"]) == {"self_guided"}
