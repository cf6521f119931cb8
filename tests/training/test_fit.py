from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file
from torch import nn

from kdbench.base.weights import load_weights
from kdbench.data import SeededLoader
from kdbench.errors import KDBenchError
from kdbench.needs import Artifact
from kdbench.training import trained as trained_module
from kdbench.training.fit import BEST, DEPLOYED, MODEL, Training
from kdbench.training.history import Diverged
from tests.toy import SGD, Data, Net, Patterns, Toy, collate, recipe, same, scores, teacher_file, training, weights

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"wall_s", "peak_rss_mb"}


class Stop(Callback):
    """Ends a training in the middle of an epoch, by an exception or as ``kill -9`` would."""

    def __init__(self, epoch: int, kill: bool = False) -> None:
        self.epoch, self.kill = epoch, kill

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedError


class Rates(Callback):
    """Collects the learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.rates.append(module.lr())


def checkpoint(folder: Path, stage: str = "distil"):
    """What a resumed training would continue from, without clocks and versions."""
    state = torch.load(folder / "scratch" / stage / "last.ckpt", weights_only=True)
    history = next(iter(state["callbacks"].values()))
    history.pop("wall")
    return {k: state[k] for k in ("state_dict", "optimizer_states", "lr_schedulers", "epoch")} | {"history": history}


def flat(value, prefix=""):
    """Flattens nested containers to leaves by path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: value}


def assert_equal(first, second):
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert equal, name


def assert_resumed(whole: Path, resumed: Path, first: dict, second: dict, stage: str = "distil"):
    assert_equal(checkpoint(whole, stage), checkpoint(resumed, stage))
    for name in (MODEL, "metrics.csv"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    assert (whole / "scratch" / stage / BEST).read_bytes() == (resumed / "scratch" / stage / BEST).read_bytes()
    for manifest in (first, second):
        for clock in CLOCKS:
            assert manifest["cost"].pop(clock) > 0
    assert first == second


@pytest.mark.parametrize("method", [None, "Hint", "Mutual", "Adversary", "MeanTeacher", "Bank", "Bilevel"])
def test_a_resumed_training_is_an_uninterrupted_one(tmp_path, method):
    interrupt_and_resume(tmp_path, method)


def interrupt_and_resume(folder: Path, method: str | None, **keys: Any) -> None:
    keys = {"epochs": 3, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.02}, **keys}
    whole = training(folder / "whole", method, **keys).run(folder / "whole")
    with pytest.raises(InterruptedError):
        training(folder / "resumed", method, **keys).run(folder / "resumed", [Stop(2)])
    torch.rand(17)
    resumed = training(folder / "resumed", method, **keys).run(folder / "resumed")
    assert_resumed(folder / "whole", folder / "resumed", whole, resumed)


@pytest.mark.parametrize("method", [None, "Bilevel"])
def test_workers_that_prefetch_resume_in_the_epoch_that_was_interrupted(tmp_path, monkeypatch, method):
    def loader(data, split, size):
        train = split in ("train", "meta")
        patterns = Patterns(size, split)
        return SeededLoader(patterns, 16, data.seed, collate, train=train, workers=int(train))

    monkeypatch.setattr(Data, "_loader", loader)
    interrupt_and_resume(tmp_path, method)


def test_double_precision_resumes_in_double_precision(tmp_path):
    interrupt_and_resume(tmp_path, "Hint", precision="64-true")


@pytest.mark.parametrize("stop", [(0, "float"), (1, "rounded")])
def test_stages_resume_too(tmp_path, stop):
    keys = {"epochs": 4}
    whole = training(tmp_path / "whole", "Rounded", **keys).run(tmp_path / "whole")

    class StopIn(Stop):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if module.stage.name == stop[1]:
                super().on_train_batch_end(trainer, module, outputs, batch, index)

    with pytest.raises(InterruptedError):
        training(tmp_path / "resumed", "Rounded", **keys).run(tmp_path / "resumed", [StopIn(stop[0])])
    resumed = training(tmp_path / "resumed", "Rounded", **keys).run(tmp_path / "resumed")
    assert_resumed(tmp_path / "whole", tmp_path / "resumed", whole, resumed, "rounded")


@pytest.mark.slow
def test_a_killed_training_is_resumed_by_another_process(tmp_path):
    whole = training(tmp_path / "whole", "Hint", epochs=3).run(tmp_path / "whole")
    code = (
        "from pathlib import Path; from tests.toy import training; from tests.training.test_fit import Stop; "
        f"folder = Path({str(tmp_path / 'resumed')!r}); "
        "training(folder, 'Hint', epochs=3).run(folder, [Stop(2, kill=True)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "resumed" / MODEL).exists()
    rates = Rates()
    resumed = training(tmp_path / "resumed", "Hint", epochs=3).run(tmp_path / "resumed", [rates])
    assert len(rates.rates) == 4
    assert_resumed(tmp_path / "whole", tmp_path / "resumed", whole, resumed)


def test_a_constant_stage_keeps_the_rate_that_the_schedule_of_the_others_starts_from(tmp_path):
    rates = Rates()
    training(tmp_path, "Steady", epochs=2, scheduler={"_target_": "kdbench.optim.cosine"}).run(tmp_path, [rates])
    first, second = rates.rates[:4], rates.rates[4:]
    assert set(first) == {second[0]}
    assert second == sorted(set(second), reverse=True)
    assert len(second) == 4


def test_a_finished_training_is_not_trained_again(tmp_path):
    first = training(tmp_path, "Hint").run(tmp_path)
    rates = Rates()
    second = training(tmp_path, "Hint").run(tmp_path, [rates])
    assert rates.rates == []
    assert first["scores"] == second["scores"]
    assert first["cost"]["samples_seen"] == second["cost"]["samples_seen"]
    assert 0 < second["cost"]["wall_s"] < 10 + first["cost"]["wall_s"]


def test_two_trainings_of_one_recipe_are_bitwise_the_same(tmp_path):
    files = []
    for name in ("a", "b"):
        training(tmp_path / name, "Hint").run(tmp_path / name)
        files.append((tmp_path / name / MODEL).read_bytes())
        torch.rand(3)
    assert files[0] == files[1]


@pytest.mark.parametrize("method", [None, "Hint", "Mutual", "MeanTeacher", "Rounded", "Reuse"])
def test_the_weights_have_plain_names_and_load_into_the_plain_model(tmp_path, method):
    trained = training(tmp_path, method, epochs=4)
    manifest = trained.run(tmp_path)
    net = Net(4)
    assert load_file(tmp_path / MODEL).keys() == net.state_dict().keys()
    load_weights(net, tmp_path / MODEL)
    if method != "Reuse":
        found = Toy().evaluate(net, trained.data.test_dataloader(), "test", torch.device("cpu"))
        assert found == scores(trained, tmp_path)["test"]
        assert manifest["bytes"] == (tmp_path / MODEL).stat().st_size
    assert (tmp_path / DEPLOYED).exists() == (method == "Reuse")
    assert (tmp_path / "peer.safetensors").exists() == (method == "Mutual")
    assert ("peer" in manifest["beside"]) == (method == "Mutual")


def test_what_is_deployed_is_what_is_scored(tmp_path):
    """A student with the teacher's classifier: its own head never trains, so the plain student is at chance."""
    trained = training(tmp_path, "Reuse", epochs=6)
    manifest = trained.run(tmp_path)
    deployed = trained.plugins["method"].artifacts(trained.cast.models())["student"].module
    load_weights(deployed, tmp_path / DEPLOYED)
    found = Toy().evaluate(deployed, trained.data.test_dataloader(), "test", torch.device("cpu"))
    assert found == scores(trained, tmp_path)["test"]
    val = Toy().evaluate(deployed, trained.data.val_dataloader(), "val", torch.device("cpu"))
    assert val["accuracy"] == pytest.approx(manifest["scores"]["val"]["accuracy"])
    assert manifest["params"] == sum(p.numel() for p in deployed.parameters())


class Starts(Callback):
    """Weights of student and teacher, and the rate, as each stage begins."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict, dict, float]] = []

    def on_train_start(self, trainer, module):
        student, teacher = (weights(module.cast.model(role)) for role in ("student", "teacher"))
        self.seen.append((student, teacher, trainer.optimizers[0].param_groups[0]["initial_lr"]))


def test_a_generation_starts_afresh_taught_by_the_last_one(tmp_path):
    starts = Starts()
    training(tmp_path / "both", "Generations").run(tmp_path / "both", [starts])
    first, second = starts.seen
    assert same(first[0], second[0])
    assert (first[2], second[2]) == (0.1, 0.05)
    training(tmp_path / "alone").run(tmp_path / "alone")
    assert same(second[1], load_file(tmp_path / "alone" / MODEL))


def test_a_stage_rebinds_a_role_and_a_parametrised_student_stays_plain(tmp_path):
    trained = training(tmp_path, "Rounded", epochs=4)
    before: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer, module):
            teacher = trained.cast.model("teacher")
            if module.stage.name == "rounded":
                before.update(weights(teacher))
                assert teacher is not trained.cast.model("student")
                assert torch.equal(teacher.stem[0].weight, trained.cast.model("student").stem[0].weight)

    manifest = trained.run(tmp_path, [Look()])
    assert same(before, weights(trained.cast.model("teacher")))
    student = trained.cast.model("student")
    scale = student.head.parametrizations.weight[0].scale
    steps = load_file(tmp_path / MODEL)["head.weight"] / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert manifest["cost"]["epochs"] == 4
    assert manifest["cost"]["teacher_passes"] == 0.5


def test_what_a_plugin_built_trains_on_over_the_stages(tmp_path):
    trained = training(tmp_path, "Staged")
    seen: list[dict[str, torch.Tensor]] = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.append(weights(trained.plugins["method"]))

        def on_train_end(self, trainer, module):
            seen.append(weights(trained.plugins["method"]))

    trained.run(tmp_path, [Look()])
    first, trained_once, again, last = seen
    assert same(trained_once, again)
    assert not same(first, trained_once)
    assert not same(again, last)


def test_rows_and_costs_count_what_happened(tmp_path):
    manifest = training(tmp_path, "Hint", epochs=3).run(tmp_path)
    assert manifest["cost"] | dict.fromkeys(CLOCKS, 0) == {
        "epochs": 3,
        "samples_seen": 192,
        "student_passes": 1.0,
        "teacher_passes": 1.0,
        "added_params": 40,
        "wall_s": 0,
        "peak_rss_mb": 0,
    }
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,lr,train/task,train/hint,weight/task,weight/hint,val/accuracy"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2"]
    assert manifest["terms"]["hint"]["weight"] == 0.5
    assert manifest["scores"]["val"]["accuracy"] == pytest.approx(float(lines[-1].split(",")[-1]))
    assert 0 <= manifest["best_epoch"] < 3


def test_terms_that_did_nothing_are_said(tmp_path):
    for name in ("Idle", "Staged"):
        (tmp_path / name).mkdir()
    flags = ["zero_term:nothing", "no_gradient:flat"]
    assert training(tmp_path, "Idle").run(tmp_path / "Idle")["flags"] == flags
    assert training(tmp_path, "Idle", epochs=1).run(tmp_path / "Idle")["flags"] == flags
    assert training(tmp_path, "Staged").run(tmp_path / "Staged")["flags"] == []


def test_the_best_on_validation_stands_beside_the_last(tmp_path):
    hot = {"optimizer": SGD | {"lr": 1.0}, "scheduler": {"_target_": "kdbench.optim.constant"}}
    trained = training(tmp_path, None, seed=4, epochs=6, val_every=2, **hot)
    manifest = trained.run(tmp_path)
    assert manifest["best_epoch"] in (1, 3)
    best = Net(4)
    load_weights(best, tmp_path / "scratch" / "distil" / BEST)
    shutil.rmtree(tmp_path / "scratch")  # is no part of the product
    found = scores(trained, tmp_path)
    assert found["best_on_val"] != found["test"]
    assert found["best_on_val"] == Toy().evaluate(best, trained.data.test_dataloader(), "test", torch.device("cpu"))


@pytest.mark.parametrize(("epochs", "validated"), [(5, [2, 4, 5]), (1, [1])])
def test_the_last_epoch_is_always_validated(tmp_path, epochs, validated):
    training(tmp_path, None, epochs=epochs, val_every=2).run(tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/accuracy")
    assert [i for i, row in enumerate(rows) if i and row[column]] == validated


class Beside(Toy):
    """Scores a second set too, of which it takes the sum."""

    def beside(self, data: Any) -> Any:
        return {"second": data.val_dataloader()}

    @torch.no_grad()
    def evaluate(self, artifact, loader, split, device, second=()):
        sums = {"second": sum(float(batch.inputs.sum()) for batch in second)} if second else {}
        return super().evaluate(artifact, loader, split, device) | sums


def test_all_that_is_scored_is_read_through_the_view_of_an_artifact(tmp_path, monkeypatch):
    trained = Training(recipe(), Beside())
    assert trained.run(tmp_path)["scores"]["val"].keys() == {"accuracy"}
    seen = Artifact(Net(4), view=lambda batch: batch.with_inputs(torch.ones_like(batch.inputs)))
    assert scores(trained, tmp_path)["test"]["second"] != 40 * 3 * 8 * 8
    monkeypatch.setattr(trained_module, "load_artifacts", lambda *_, **__: {"student": seen})
    found = scores(trained, tmp_path)["test"]
    assert found["second"] == 40 * 3 * 8 * 8
    assert set(found) == {"accuracy", "second"}


class Judged(Toy):
    """Scores a model in a way of its own."""

    @torch.no_grad()
    def evaluate(self, artifact, loader, split, device):
        assert not artifact.training
        return {"accuracy": sum(len(batch) for batch in loader) / 100}


def test_validation_is_what_the_task_evaluates(tmp_path):
    trained = Training(recipe(), Judged())
    manifest = trained.run(tmp_path)
    assert manifest["scores"]["val"] == scores(trained, tmp_path)["test"] == {"accuracy": 0.4}


@pytest.mark.parametrize("val_every", [1, 3])
def test_a_training_that_runs_out_of_time_is_scored_where_it_stands(tmp_path, val_every):
    manifest = training(tmp_path, None, epochs=1000, max_minutes=0.005, val_every=val_every).run(tmp_path)
    assert 0 < manifest["cost"]["epochs"] < 1000
    assert manifest["scores"]["val"].keys() == {"accuracy"}


def test_a_training_never_reads_the_test_set(tmp_path, monkeypatch):
    training(tmp_path, "KD")
    trial = recipe("KD").trial(0.3, seed=9, length=1.0)
    trained = Training(trial, Toy(), {"teacher": tmp_path / "teacher.safetensors"})
    monkeypatch.setattr(type(trained.data), "test_dataloader", lambda self: pytest.fail("the test set was read"))
    manifest = trained.run(tmp_path / "trial")
    assert set(manifest["scores"]) == {"val"}
    assert manifest["terms"]["kd"]["weight"] == pytest.approx(0.3)
    assert manifest["terms"]["task"]["weight"] == 1.0


def test_the_schedule_of_every_optimizer_spans_the_training(tmp_path):
    """One cycle fails when it is stepped past its end, and it ends low only when it is stepped to it."""
    for method in ("KD", "Mutual", "Twice", "Adversary", "Occasional"):
        rates = Rates()
        schedule = {"_target_": "kdbench.optim.one_cycle"}
        training(tmp_path / method, method, epochs=3, scheduler=schedule).run(tmp_path / method, [rates])
        assert max(rates.rates) > 0.5
        assert rates.rates[-1] < 0.1


@pytest.mark.parametrize("fault", ["infinite", "absent"])
def test_a_training_that_goes_wrong_ends_with_one_line(tmp_path, fault):
    expected = {"infinite": "term 'kd' is not finite in epoch 0", "absent": "term 'kd' was there on the first batch"}
    error = Diverged if fault == "infinite" else KDBenchError
    with pytest.raises(error, match=expected[fault]) as raised:
        training(tmp_path, "Faulty", fault=fault).run(tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / MODEL).exists()


def test_a_rate_that_is_too_high_diverges(tmp_path):
    hot = {"_target_": "torch.optim.SGD", "lr": 1e12, "momentum": 0.9}
    with pytest.raises(Diverged, match="not finite"):
        training(tmp_path, None, epochs=6, optimizer=hot).run(tmp_path)


class Attentive(Net):
    """Averages over its cells by attention, which has fused kernels."""

    def forward(self, images):
        cells = self.body(self.stem(images)).flatten(2).transpose(1, 2).unsqueeze(1)
        return self.head(nn.functional.scaled_dot_product_attention(cells, cells, cells).mean((1, 2)))


class Attending(Toy):
    def build(self, architecture):
        return Attentive(**architecture)


def test_a_step_within_a_step_goes_through_attention(tmp_path):
    trained: Any = Training(recipe("Bilevel", epochs=1), Attending(), {"teacher": teacher_file(tmp_path)})
    manifest = trained.run(tmp_path)
    assert manifest["cost"]["epochs"] == 1
    assert trained.plugins["method"].gate.item() != 0.0


def test_a_missing_teacher_is_one_line(tmp_path):
    with pytest.raises(KDBenchError, match="role 'teacher' starts from a trained teacher, and this run has none"):
        Training(recipe("KD"), Toy())


def test_a_teacher_alone_is_trained_as_a_student_of_its_side(tmp_path):
    trained = training(tmp_path, None, side="teacher")
    trained.run(tmp_path)
    load_weights(Net(8), tmp_path / MODEL)


def test_a_peer_does_not_start_from_weights_that_are_given_for_the_teacher(tmp_path):
    plain, given = (replace(recipe("Mutual"), config=dict(recipe("Mutual").config)) for _ in range(2))
    given.config["teacher"] = {**given.config["teacher"], "init_from": str(teacher_file(tmp_path))}  # type: ignore[index]
    for a, b in zip(*(Training(r, Toy()).cast.model("peer").parameters() for r in (plain, given)), strict=True):
        assert torch.equal(a, b)
