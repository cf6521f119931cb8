"""Batches that arise inside ``terms``: a generator distilled to one step, a sequence model on its own samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics import MeanMetric, MetricCollection

from kdbench.base import rng
from kdbench.base.weights import save_weights
from kdbench.data import Key, SeededLoader
from kdbench.features import Feature, Logits, Vector
from kdbench.needs import STUDENT, TEACHER, Need, Role, Update
from kdbench.plugin import Method
from kdbench.signals import Context, Signals
from kdbench.task import Batch, DatasetInfo, ExportPlan, Task
from kdbench.training.fit import Training
from kdbench.training.recipe import Recipe
from tests.toy import specs

MEAN, SPREAD, NOISE = 3.0, 0.5, 1.0


class Latents(Dataset[tuple[Tensor, int]]):
    """``size`` inputs without a label; training draws anew in every epoch."""

    def __init__(self, draw, size: int, seed: int) -> None:
        self.draw, self.size, self.seed = draw, size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        return self.draw(rng.generator(self.seed, "latent", *key)), key.sample


def collate(samples: Any) -> Batch:
    inputs, ids = zip(*samples, strict=True)
    return Batch(torch.stack(inputs), None, torch.tensor(ids))


class Data(LightningDataModule):
    def __init__(self, draw, seed: int) -> None:
        super().__init__()
        self.draw, self.seed = draw, seed

    def train_dataloader(self) -> SeededLoader:
        return SeededLoader(Latents(self.draw, 128, self.seed), 32, self.seed, collate, train=True)

    def val_dataloader(self) -> SeededLoader:
        return SeededLoader(Latents(self.draw, 256, 99), 256, 99, collate, train=False)

    test_dataloader = val_dataloader


class Unlabelled(Task):
    """A task without a supervised term; what it scores is how far the mean of the outputs is from the truth."""

    name = "unlabelled"
    primary = "distance"
    higher_is_better = False
    truth: float
    feature: type[Feature] = Vector

    @classmethod
    def kinds(cls, side: Any) -> dict[str, type[Feature]]:
        return {"out": cls.feature}

    def dataset(self) -> DatasetInfo:
        return DatasetInfo(self.name, True, self.name, {"train": 128, "val": 256, "test": 256})

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(2, generator=generator)

    def data(self, seed: int) -> Data:
        return Data(self.draw, seed)

    def describe(self, outputs: Tensor, taps: Any, batch: Batch) -> dict[str, Feature]:
        return {"out": self.feature(outputs)}

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {}

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"distance": MeanMetric()})

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        metrics.update((outputs.mean(0) - MEAN).abs().mean())

    def export(self, model: nn.Module) -> ExportPlan:
        return ExportPlan(model, (torch.zeros(1, 2),), ("latent",))


class Exact(nn.Module):
    """The denoiser of a normal law in closed form: E[x | x + NOISE · ε] where x has the mean MEAN and spread SPREAD."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN))

    def forward(self, noisy: Tensor) -> Tensor:
        return (SPREAD**2 * noisy + NOISE**2 * self.mean) / (SPREAD**2 + NOISE**2)


class Clouds(Unlabelled):
    """Points in the plane: a generator of them, and denoisers."""

    name = "clouds"

    def build(self, architecture: Any) -> nn.Module:
        return {"generator": lambda: nn.Linear(2, 2), "denoiser": Exact}[architecture["name"]]()


class Matching(Method):
    """DMD in small: the generator follows the difference of two denoisers, a frozen one and one that learns from it."""

    needs = (Need("out", Vector, ("student", "teacher", "fake")),)
    roles = {"student": STUDENT, "teacher": TEACHER, "fake": Role("train", side="teacher")}

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        made = signals.feature("out", "student").values
        noise = torch.randn(made.shape, generator=ctx.generator("noise"))
        noisy = signals.batch().with_inputs((made + NOISE * noise).detach())
        terms = {}
        if ctx.wants("fake"):
            terms["fake"] = F.mse_loss(signals.feature("out", "fake", noisy).values, made.detach())
        if ctx.wants("matching"):
            fake, real = (signals.ask(role, noisy).outputs for role in ("fake", "teacher"))
            terms["matching"] = F.mse_loss(made, (made - (fake - real)).detach())
        return terms

    def updates(self) -> tuple[Update, ...]:
        return (
            Update({"fake": 1.0}, ("fake",)),
            Update({"matching": 1.0}, ("student",), group=1, modes={"fake": "eval"}),
        )


class Speaker(nn.Module):
    """A recurrent model of token sequences: ``(B, L)`` to scores of the next token ``(B, L, 4)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


class Talk(Unlabelled):
    """Prompts of two tokens without an answer."""

    name = "talk"
    feature = Logits

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.randint(4, (2,), generator=generator)

    def build(self, architecture: Any) -> nn.Module:
        return Speaker(architecture["width"])

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs.softmax(-1).amax(-1).mean())


class OnPolicy(Method):
    """GKD in small: the student continues the prompt, and is compared with its teacher on its own words."""

    needs = (Need("out", Logits),)
    heard: Tensor

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        prompt, generator = signals.batch(), ctx.generator("sample")
        said = prompt
        with torch.no_grad():
            for _ in range(3):
                scores = signals.ask("student", said).outputs[:, -1]
                token = torch.multinomial(scores.softmax(-1), 1, generator=generator)
                said = prompt.with_inputs(torch.cat([said.inputs, token], 1))
        s, t = (f.values.log_softmax(-1) for f in signals.pair("out", said))
        self.heard = said.inputs
        return {"reverse_kl": F.kl_div(t, s, log_target=True, reduction="batchmean")}


def prepared(folder: Path, task: Task, method: type[Method], student: Any, teacher: Any, epochs: int) -> Training:
    """A training of a method of this file on a task of it, under a teacher of initial weights."""
    trainer = {
        "epochs": epochs,
        "val_every": epochs,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.05},
        "scheduler": {"_target_": "kdbench.optim.constant"},
        **{
            "optimizers": {},
            "accumulate": 1,
            "clip": None,
            "precision": "32-true",
            "channels_last": False,
            "compile": False,
            "accelerator": "cpu",
            "devices": 1,
        },
        **{"strategy": "auto", "threads": None, "max_minutes": None, "manual": False},
    }
    sides = {"student": {"architecture": student}, "teacher": {"architecture": teacher}}
    config = {
        "task": {"_target_": "-.Task"},
        "pair": {"name": "-", **sides},
        "student": {},
        "teacher": {},
        "trainer": trainer,
    }
    spec = {"_target_": f"{__name__}.{method.__name__}", "weights": {"task": 1.0, **WEIGHTS[method]}}
    with rng.scope(7, "teacher"):
        save_weights(task.build(teacher), folder / "teacher.safetensors")
    recipe = Recipe(
        "student",
        "student",
        config,
        specs(method=spec),
        0,
        "-",
        {"teacher": Recipe("teacher", "teacher", config, {}, 0, "-")},
    )
    return Training(recipe, task, {"teacher": folder / "teacher.safetensors"})


WEIGHTS: dict[type[Method], dict[str, float]] = {
    Matching: {"fake": 1.0, "matching": 1.0},
    OnPolicy: {"reverse_kl": 1.0},
}


def last_heard(training: Training) -> Tensor:
    method = training.plugins["method"]
    assert isinstance(method, OnPolicy)
    return method.heard


def test_a_generator_learns_from_two_denoisers_without_any_label(tmp_path):
    task = Clouds()
    training = prepared(tmp_path, task, Matching, {"name": "generator"}, {"name": "denoiser"}, epochs=40)
    student, teacher, fake = (training.cast.model(r) for r in ("student", "teacher", "fake"))
    nn.init.constant_(fake.mean, 0.0)  # type: ignore[arg-type]
    inputs = next(iter(training.data.val_dataloader())).inputs
    before = student(inputs)
    assert (before.mean(0) - MEAN).abs().max() > 2
    manifest = training.run(tmp_path)
    after = student(inputs)
    assert (after.mean(0) - MEAN).abs().max() < 0.3
    assert fake.mean.item() == pytest.approx(after.mean().item(), abs=0.3)  # type: ignore[operator]
    assert teacher.mean.item() == MEAN  # type: ignore[operator]
    assert set(manifest["terms"]) == {"fake", "matching"}
    # The student once for each of two groups; the teacher in one of them, the learning denoiser in both.
    assert manifest["cost"]["student_passes"] == 2
    assert manifest["cost"]["teacher_passes"] == 3


def test_a_student_is_taught_on_what_it_says_itself(tmp_path):
    training = prepared(tmp_path, Talk(), OnPolicy, {"width": 4}, {"width": 8}, epochs=6)
    heard: list[Tensor] = []
    training.cast.model("teacher").register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    manifest = training.run(tmp_path)
    assert heard[-1].shape == (32, 5)
    assert torch.equal(heard[-1], last_heard(training))
    assert manifest["cost"]["student_passes"] == 4
    assert manifest["cost"]["teacher_passes"] == 1
    assert manifest["terms"]["reverse_kl"]["last"] < 0.7 * manifest["terms"]["reverse_kl"]["first"]


def test_samples_of_a_step_repeat(tmp_path):
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        training = prepared(tmp_path / name, Talk(), OnPolicy, {"width": 4}, {"width": 8}, epochs=1)
        torch.rand(3 if name == "one" else 5)
        training.run(tmp_path / name)
        runs.append(last_heard(training))
    assert torch.equal(*runs)
