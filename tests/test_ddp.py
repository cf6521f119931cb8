"""Two CPU processes against one with the same global batch, in float64 on networks without batch norm and dropout.

The second process is started once and kept, as it is for the trainings of a run.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from kdbench.base import rng
from kdbench.base.collectives import average, normalizer, share
from kdbench.base.instantiate import locate
from kdbench.base.weights import save_weights
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.data import SeededLoader
from kdbench.errors import KDBenchError
from kdbench.features import Activated, Feature, Grid, Kind, Logits, Points, Tokens
from kdbench.signals import Context, Signals
from kdbench.task import Batch
from kdbench.training import processes
from kdbench.training.fit import Training
from kdbench.training.recipe import MODEL
from tests import dense, plugins
from tests.cli import ROOT, CommandLine, install
from tests.methods.harness import yaml
from tests.toy import CLASSES, Data, Patterns, Toy, collate, recipe, scores, specs
from tests.toy import training as toy_training

CPU = torch.device("cpu")


# ---- the toy without batch norm -------------------------------------------------------------------------------


class Smooth(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images).tanh()).tanh().mean((2, 3)))


class Plain(Toy):
    capabilities = Toy.capabilities | {"rotate", "strong_view"}

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        return {name: Activated if kind is Grid else kind for name, kind in super().kinds(side).items()}

    def build(self, architecture: Mapping[str, Any]) -> Any:
        return Smooth(**architecture)

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        features = super().describe(outputs, taps, batch)
        return {n: Activated(f.values.tanh(), pre=f.values) if isinstance(f, Grid) else f for n, f in features.items()}

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(CLASSES, average="micro"), "seen": SumMetric()})

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        metrics["accuracy"].update(outputs, batch.targets)
        metrics["seen"].update(len(batch))

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"rotate": lambda x, k: x.rot90(k, (2, 3)), "strong": lambda x, generator: 1.5 * x}


def partly(samples: Sequence[tuple[Tensor, int, int]]) -> Batch:
    batch = collate(samples)
    batch.supervised, batch.distilled = batch.ids % 3 > 0, batch.ids % 4 > 0
    return batch


class PartlyData(Data):
    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        return SeededLoader(Patterns(64, "train"), 16, self.seed, partly, train=True)


class Partly(Plain):
    """Some samples are not supervised, others not distilled, and rows weigh differently."""

    def data(self, seed: int) -> Any:
        return PartlyData(seed)

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        weight = 1.0 + batch.ids % 5
        logits = Logits(outputs, mask=batch.distilled, weight=weight, target=batch.targets)
        return super().describe(outputs, taps, batch) | {"logits": logits}

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        if batch.supervised is None:
            return super().loss(model, outputs, batch)
        rows = F.cross_entropy(outputs, batch.targets, reduction="none")[batch.supervised]
        return {"ce": rows.sum() / normalizer(batch.supervised.sum())}


class Ragged(Plain):
    """Each sample has points of its own, as many as its number says, and tokens of which some are padding."""

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        return {"points": Points, "tokens": Tokens, "logits": Logits}

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        cells = taps["body"].flatten(2).transpose(1, 2)
        kept = torch.arange(cells.shape[1]) < (batch.ids % 7 + 1)[:, None]
        sample = kept.nonzero()[:, 0]
        points = Points(cells[kept], cells.new_zeros(len(sample), 3), sample)
        return {"points": points, "tokens": Tokens(cells, mask=kept), "logits": Logits(outputs)}


class Projected(plugins.Hint):
    """A hint without dropout."""

    def build(self, probe: Signals) -> None:
        s, t = probe.pair("body")
        self.project = nn.Sequential(nn.Conv2d(s.values.shape[1], t.values.shape[1], 1))


class Drawn(plugins.KD):
    """What it draws for the whole batch is the same in all processes, and by name that of a single process."""

    over_batch: ClassVar[bool] = True

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        loss = super().terms(signals, ctx)["kd"]
        named, unnamed = torch.rand(1, generator=ctx.generator("drawn")), torch.rand(1)
        assert torch.equal(average([named])[0], named)
        assert torch.equal(average([unnamed])[0], unnamed)
        return {"kd": named.sum() * loss}


class DrawnAlone(plugins.KD):
    """What it draws for its own samples is not."""

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        if share()[1] > 1:
            own = torch.rand(1, generator=ctx.generator("drawn"))
            assert not torch.equal(average([own])[0], own)
        return super().terms(signals, ctx)


def training(folder: Path, method: str | None = None, task: Any = None, **keys: Any) -> Any:
    """``method`` is a class of ``tests.plugins`` or of this module, or the file of a method."""
    folder.mkdir(parents=True, exist_ok=True)
    with rng.scope(7, "toy", "teacher"):
        save_weights(Smooth(8), folder / "teacher.safetensors")
    keys = {"precision": "64-true", **keys}
    if method is None or hasattr(plugins, method):
        made = recipe(method, **keys)
    else:
        here = {"Projected": {"hint": 0.5}, "Drawn": {"kd": 1.0}, "DrawnAlone": {"kd": 1.0}}
        spec = {"_target_": f"{__name__}.{method}", "weights": here[method]} if method in here else yaml(method)
        made = replace(recipe("KD", **keys), plugins=specs(method=spec))
    return Training(made, task or Plain(), {"teacher": folder / "teacher.safetensors"})


def state(folder: Path, trained: Any) -> dict[str, Tensor]:
    """Everything that trained and every bank, in float64."""
    return torch.load(folder / "scratch" / trained.stages[-1].name / "last.ckpt", weights_only=True)["state_dict"]


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]


def both(folder: Path, method: str | None, **keys: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trains in one and in two processes; returns both outcomes after checking what is recorded."""
    outcomes, tables, manifests, tested = [], [], [], []
    for devices in (1, 2):
        work = folder / str(devices)
        trained = training(work, method, devices=devices, **keys)
        manifests.append(trained.run(work))
        tested.append(scores(trained, work)["test"])
        outcomes.append(state(work, trained))
        tables.append(rows(work))
    for one, two in zip(*tables, strict=True):
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)
    for manifest in manifests:
        manifest["cost"] = {k: v for k, v in manifest["cost"].items() if k not in ("wall_s", "peak_rss_mb")}
    assert manifests[0]["cost"] == manifests[1]["cost"]
    assert tested[1] == pytest.approx(tested[0])
    assert {row["val/seen"] for row in tables[1]} == {40}
    return outcomes[0], outcomes[1]


def assert_equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(two[name].double(), value.double(), rtol=1e-9, atol=1e-9), name


# ---- trainings ------------------------------------------------------------------------------------------------


SINGLE = [None, "KD", "Projected", "MeanTeacher", "Bank", "Reuse", "Generations", "Drawn", "DrawnAlone"]


@pytest.mark.parametrize("method", [*SINGLE, "Mutual", "Balanced", "Twice", "Adversary", "Occasional", "Bilevel"])
def test_two_processes_train_what_one_trains(tmp_path, method):
    assert_equal(*both(tmp_path, method))


@pytest.mark.parametrize("manual", [False, True])
def test_gradients_are_clipped_after_they_are_averaged(tmp_path, manual):
    adam = {"_target_": "torch.optim.AdamW", "lr": 0.01}
    assert_equal(*both(tmp_path, "Projected", clip=0.05, manual=manual, optimizer=adam))


#: Methods whose losses draw something for each sample (MGD its masks).
DRAWS = ("mgd",)
METHODS = sorted(path.stem for path in (config.folder() / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_one_process_trains(tmp_path, method):
    """Fails for a method that compares the samples of a batch and does not say so (``Plugin.over_batch``)."""
    if "_target_" not in yaml(method):
        pytest.skip("no method")
    spec = yaml(method)
    plugin: Any = locate(spec["_target_"])
    try:
        bind(plugin, Plain, recipe().config["pair"], spec.get("bind"))
    except KDBenchError as error:
        pytest.skip(str(error))
    trained = training(tmp_path, method)
    trained.distiller(trained.stages[0]).rehearse(trained.first_batch())
    if any(isinstance(module, _BatchNorm) for module in trained.plugins["method"].modules()):
        pytest.skip("has batch norm, whose statistics are each process's own")
    if method in DRAWS:
        pytest.skip("draws for each sample, in each process")
    assert_equal(*both(tmp_path, method, epochs=1))


class SmoothMap(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Conv2d(width, width, 3, dense.STRIDE, 1)
        self.head = nn.Conv2d(width, dense.CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images).tanh()).tanh())


class Maps(dense.Dense):
    def __init__(self) -> None:
        pass

    def build(self, architecture: Mapping[str, Any]) -> Any:
        return SmoothMap(**architecture)


@pytest.mark.parametrize("method", ["cwd", "dsd", "ifvd"])
def test_methods_of_maps_train_what_one_process_trains(tmp_path, method):
    with rng.scope(7, "toy", "teacher"):
        save_weights(SmoothMap(8), tmp_path / "teacher.safetensors")
    outcomes = []
    for devices in (1, 2):
        given = recipe("KD", precision="64-true", epochs=1, devices=devices)
        sides = {
            n: {**given.config["pair"][n], "taps": {"stem": "stem", "body": "body"}} for n in ("student", "teacher")
        }
        config = {**given.config, "pair": {"name": "maps", **sides}}
        made = replace(given, config=config, plugins=specs(method=yaml(method)))
        trained = Training(made, Maps(), {"teacher": tmp_path / "teacher.safetensors"})
        (tmp_path / str(devices)).mkdir()
        trained.run(tmp_path / str(devices))
        outcomes.append(state(tmp_path / str(devices), trained))
    assert_equal(*outcomes)


@pytest.mark.parametrize("method", [None, "KD", "dkd", "nkd", "dist", "bdkd", "tf_kd", "Mutual"])
def test_normalisers_are_those_of_the_whole_batch(tmp_path, method):
    assert_equal(*both(tmp_path, method, task=Partly(), epochs=1))


@pytest.mark.parametrize("feature", ["points", "tokens"])
def test_a_mean_over_ragged_rows_is_that_of_the_whole_batch(tmp_path, feature, monkeypatch):
    """And nothing is gathered for it: what the processes exchange is a number."""
    monkeypatch.setattr("kdbench.signals.whole_feature", None)
    spec = {**yaml("fitnet"), "regressor": "conv1x1", "bind": {"feature": feature}}
    monkeypatch.setattr(f"{__name__}.yaml", lambda name: spec)
    assert_equal(*both(tmp_path, "fitnet", task=Ragged(), epochs=1))


# ---- processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch"), [(3, 16), (3, 100)])
def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch, size, batch):
    monkeypatch.setattr("kdbench.data.share", lambda: (0, size))
    line = f"data.batch_size: found batches of {min(64, batch)} samples for 3 processes, expected equal parts"
    with pytest.raises(KDBenchError, match=line):
        SeededLoader(Patterns(64, "train"), batch, 0, collate, train=True)
    assert SeededLoader(Patterns(64, "val"), batch, 0, collate).batch_size == batch


def test_more_devices_than_there_are_is_one_line(tmp_path, monkeypatch):
    trained = training(tmp_path, devices=2, accelerator="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KDBenchError, match="trainer.devices=2: found 1 GPU: ask for fewer"):
        trained.run(tmp_path)


# ---- the command line -----------------------------------------------------------------------------------------


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def test_a_run_with_several_processes_leaves_one_record(kdbench):
    ran = kdbench("method=crd", "method.embed_dim=8", "trainer=ddp", "trainer.accelerator=cpu")
    assert ran.code == 0, ran.err
    assert ran.out.count("student: epoch 2/2") == 1
    (record,) = kdbench.records()
    assert record.status == "ok"
    assert len(kdbench.manifests()) == 3
    assert {path.name for path in kdbench.cache.iterdir()} == {"model", "scores", "latency", "locks"}
    again = kdbench("method=crd", "method.embed_dim=8", "trainer=ddp", "trainer.accelerator=cpu")
    assert "This run has its record" in again.out


def test_several_devices_in_a_local_sweep_are_refused(kdbench):
    ran = kdbench("-m", "method=kd", "seed=0,1", "trainer=ddp")
    assert ran.code == 1
    lines = [line for line in ran.err.splitlines() if line]
    assert len(lines) == 2
    assert all("trainer.devices=2: a local sweep gives each job one device: run this without -m" in x for x in lines)
    assert not kdbench.manifests()


@pytest.mark.parametrize("where", ["trainer", "teacher.trainer", "student.trainer"])
def test_a_role_with_several_devices_is_found(where):
    composed = config.load([f"++{where}.devices=3"])
    with pytest.raises(KDBenchError, match=rf"^{where}.devices=3: a local sweep"):
        config.one_device(composed)
    config.one_device(config.load())


def test_another_strategy_is_refused(kdbench):
    assert "trainer.strategy=fsdp: input should be 'auto' or 'ddp'" in kdbench("trainer.strategy=fsdp").error


# ---- what ends the other process ------------------------------------------------------------------------------


class Stop(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.current_epoch == 1 and index == 1:
            raise InterruptedError


def test_a_resumed_training_is_an_uninterrupted_one(tmp_path):
    """Bit for bit, also of a network with batch norm and dropout that one update reads in eval mode."""

    def trained(folder: Path, callbacks: Sequence[Callback] = ()) -> Any:
        made = toy_training(folder, "Adversary", devices=2, epochs=3)
        made.run(folder, callbacks)
        return state(folder, made)

    whole = trained(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(tmp_path / "resumed", [Stop()])
    resumed = trained(tmp_path / "resumed")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert (tmp_path / "whole" / MODEL).read_bytes() == (tmp_path / "resumed" / MODEL).read_bytes()


class Broken(Plain):
    """Goes wrong in the second process alone."""

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        if share()[0] == 1:
            raise KDBenchError("the second process has a line to say")
        return super().loss(model, outputs, batch)


def test_the_error_of_a_helper_is_the_error_of_the_run(tmp_path):
    with pytest.raises(KDBenchError, match="the second process has a line to say"):
        training(tmp_path, task=Broken(), devices=2).run(tmp_path)
    assert not processes._helpers


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may be there to reap it
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_killed_run_takes_its_helpers_along_and_is_resumed(tmp_path):
    site = install(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, "-m", "kdbench", "task=toy", "preset=smoke", "method=none", "role=student"]
    command += [f"results={tmp_path}/r", f"cache={tmp_path}/c", "trainer=ddp", "trainer.accelerator=cpu"]
    command += ["trainer.epochs=60"]
    given: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, **given)
    assert run.stdout is not None
    for line in run.stdout:
        if "epoch 2/60" in line:
            break
    helpers = [child for child in psutil.Process(run.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(helpers) == 1
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(alive(helper) for helper in helpers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = subprocess.run(command, capture_output=True, check=False, **given)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/60" not in done.stdout
    assert done.stderr == ""
