"""A task small enough to train in a test: noisy 3x8x8 patterns, and conv nets with batch norm and dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from kdbench.base import rng
from kdbench.base.weights import save_weights
from kdbench.configuration.resolved import PluginSpec
from kdbench.data import Key, SeededLoader
from kdbench.features import Feature, Grid, Logits, Vector
from kdbench.task import Batch, DatasetInfo, ExportPlan, Task
from kdbench.training.fit import Training
from kdbench.training.recipe import Recipe
from kdbench.training.trained import score
from tests.plugins import WEIGHTS

CLASSES = 5
TAPS = {"stem": "stem", "body": "body", "pooled": "head:input"}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


class Net(nn.Module):
    def __init__(self, width: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(self.stem(images)).mean((2, 3))))


class Patterns(Dataset[tuple[Tensor, int, int]]):
    """``size`` samples of a split; the training ones get other noise in every epoch."""

    def __init__(self, size: int, split: str) -> None:
        generator = rng.generator(0, "toy", split)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)
        patterns = torch.randn(CLASSES, 3, 8, 8, generator=rng.generator(0, "toy"))
        self.images = patterns[self.labels] + 2 * torch.randn(size, 3, 8, 8, generator=generator)
        self.train = split in ("train", "meta")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        image = self.images[key.sample]
        if self.train:
            noise = torch.randn(image.shape, generator=rng.generator(key.seed, "augment", key.epoch, key.sample))
            image = image + 0.1 * noise
        return image, int(self.labels[key.sample]), key.sample


def collate(samples: Sequence[tuple[Tensor, int, int]]) -> Batch:
    images, labels, ids = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(ids))


class Data(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _loader(self, split: str, size: int) -> SeededLoader:
        return SeededLoader(Patterns(size, split), 16, self.seed, collate, train=split in ("train", "meta"))

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        return self._loader("train", 64)

    def meta_dataloader(self) -> SeededLoader:
        return self._loader("meta", 32)

    def val_dataloader(self) -> SeededLoader:
        return self._loader("val", 40)

    def test_dataloader(self) -> SeededLoader:
        return self._loader("test", 40)


class Toy(Task):
    name = "toy"
    capabilities = frozenset({"toy", "sample_id", "single_label", "differentiable_input", "meta"})
    primary = "accuracy"
    metric_law = "mean"

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, type[Feature]]:
        taps = side.get("taps") or {}
        return {name: Vector if path.startswith("head") else Grid for name, path in taps.items()} | {"logits": Logits}

    def dataset(self) -> DatasetInfo:
        return DatasetInfo("toy", True, "toy", {"train": 64, "val": 40, "test": 40})

    def data(self, seed: int) -> Data:
        return Data(seed)

    def build(self, architecture: Mapping[str, Any]) -> Net:
        return Net(**architecture)

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        features: dict[str, Feature] = {n: Grid(t) if t.dim() == 4 else Vector(t) for n, t in taps.items()}
        return features | {"logits": self.mark(Logits(outputs), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        return replace(feature, target=batch.targets) if isinstance(feature, Logits) else feature

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"ce": nn.functional.cross_entropy(outputs, batch.targets)}

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(CLASSES, average="micro")})

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs, batch.targets)

    def contributions(self, outputs: Tensor, batch: Batch) -> Tensor:
        return torch.stack([outputs.argmax(1) == batch.targets, torch.ones_like(batch.targets)], 1)

    def export(self, model: nn.Module) -> ExportPlan:
        return ExportPlan(model, (torch.zeros(1, 3, 8, 8),), ("images",), dynamic={"images": {0: "batch"}})


def recipe(
    method: str | None = None, *, seed: int = 0, side: str = "student", dropout: float = 0.2, **keys: Any
) -> Recipe:
    """A recipe for the toy: ``method`` is a class of ``tests.plugins``, keys of the trainer or of the method follow."""
    net = {"taps": TAPS, "parts": {"classifier": "head"}}
    sides = {n: {**net, "architecture": {"width": w, "dropout": dropout}} for n, w in (("student", 4), ("teacher", 8))}
    trainer = {
        "epochs": 2,
        "val_every": 1,
        "optimizer": SGD,
        "scheduler": {"_target_": "kdbench.optim.cosine", "warmup": 0.2},
        "optimizers": {},
        "clip": None,
        "accumulate": 1,
        "precision": "32-true",
        "channels_last": True,
        "compile": False,
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
        "threads": None,
        "max_minutes": None,
        "manual": False,
    }
    own = {k: keys.pop(k) for k in list(keys) if k not in trainer}
    plugins = {}
    if method is not None:
        plugins = specs(method={"_target_": f"tests.plugins.{method}", "weights": dict(WEIGHTS[method]), **own})
    config = {
        "task": {"_target_": "tests.toy.Toy"},
        "pair": {"name": "toy", **sides},
        "student": {},
        "teacher": {},
        "trainer": trainer | keys,
    }
    inputs = {"teacher": Recipe("teacher", "teacher", config, {}, 0, "toy")} if plugins else {}
    return Recipe("student", side, config, plugins, seed, "toy", inputs)


def specs(**given: Mapping[str, Any]) -> dict[str, PluginSpec]:
    """Plugins by owner, from their configuration."""
    return {owner: PluginSpec.of(owner, spec) for owner, spec in given.items()}


def teacher_file(folder: Path, dropout: float = 0.2) -> Path:
    """Weights of a teacher that was never trained, which is enough to prove an engine."""
    with rng.scope(7, "toy", "teacher"):
        net = Net(8, dropout)
        for name, buffer in net.named_buffers():
            if name.endswith("mean"):
                buffer.normal_()
            elif name.endswith("var"):
                buffer.uniform_(0.5, 2)
    path = folder / "teacher.safetensors"
    save_weights(net, path)
    return path


def training(folder: Path, method: str | None = None, **keys: Any) -> Any:
    """A :class:`Training` of :func:`recipe`, ready to run; untyped, because tests reach into its models by name."""
    folder.mkdir(parents=True, exist_ok=True)
    return Training(recipe(method, **keys), Toy(), {"teacher": teacher_file(folder)})


def scores(trained: Training, folder: Path, beside: Sequence[str] = ()) -> dict[str, Any]:
    """What :func:`kdbench.training.trained.score` finds of a training that ran in ``folder``."""
    return score(trained.recipe, trained.task, folder, beside)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts agree bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
