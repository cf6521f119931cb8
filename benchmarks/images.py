"""Image classification for the benchmarks: the ResNets of CIFAR and a task over images in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from kdbench.configuration.resolved import PluginSpec
from kdbench.data import Key, SeededLoader
from kdbench.features import Feature, Kind, Logits
from kdbench.task import Batch, Task
from kdbench.training.recipe import Recipe

TEMPERATURE, ALPHA = 4.0, 0.9
LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu_()))
        return (y + self.shortcut(x)).relu_()


class ResNet(nn.Module):
    """The ResNets for CIFAR of He et al., CVPR 2016, section 4.2.

    Args:
        depth: Layers, 6n + 2.
        classes: Of the head.
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        pairs = zip(widths, widths[1:], strict=False)
        self.stages = nn.Sequential(*(Block(a, b, 1 + (a != b)) for a, b in pairs))
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class Images(Dataset[Batch]):
    """Rows of images in memory, repeated up to a length; fetched a batch at a time, as those of ``classification`` are.

    Args:
        images: (N, 3, H, W).
        labels: (N,).
        length: Samples of an epoch; all rows once by default.
    """

    def __init__(self, images: Tensor, labels: Tensor, length: int | None = None) -> None:
        self.images, self.labels, self.length = images, labels, length or len(images)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        ids = torch.tensor([key.sample for key in keys])
        rows = ids % len(self.images)
        return Batch(self.images[rows], self.labels[rows], ids)


class Loaders(LightningDataModule):
    """Loaders of each split, whose data sets fetch whole batches."""

    def __init__(self, splits: Mapping[str, Dataset[Batch]], batch_size: int, seed: int) -> None:
        super().__init__()
        self.splits, self.batch_size, self.seed = splits, batch_size, seed

    def _loader(self, split: str) -> SeededLoader:
        return SeededLoader(self.splits[split], self.batch_size, self.seed, None, train=split == "train")

    def train_dataloader(self) -> SeededLoader:
        return self._loader("train")

    def val_dataloader(self) -> SeededLoader:
        return self._loader("val")

    def test_dataloader(self) -> SeededLoader:
        return self._loader("test")


class Classification(Task):
    """Classifies images in memory.

    Args:
        splits: ``train``, ``val`` and ``test``.
        classes: How many.
        batch_size: Images a batch.
    """

    name: ClassVar[str] = "images"
    capabilities: ClassVar[frozenset[str]] = frozenset({"sample_id", "single_label"})
    primary: ClassVar[str] = "accuracy"

    def __init__(self, splits: Mapping[str, Images], classes: int, batch_size: int) -> None:
        self.splits, self.classes, self.batch_size = splits, classes, batch_size

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, Kind]:
        return {"logits": Logits}

    def data(self, seed: int) -> Loaders:
        return Loaders(self.splits, self.batch_size, seed)

    def build(self, architecture: Mapping[str, Any]) -> ResNet:
        return ResNet(architecture["depth"], self.classes)

    def describe(self, outputs: Tensor, taps: Mapping[str, Any], batch: Batch) -> dict[str, Feature]:
        return {"logits": self.mark(Logits(outputs), batch)}

    def mark(self, feature: Feature, batch: Batch) -> Feature:
        return replace(feature, target=batch.targets) if isinstance(feature, Logits) else feature

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"ce": nn.functional.cross_entropy(outputs, batch.targets)}

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(self.classes, average="micro")})

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs, batch.targets)


def noise(batch_size: int, steps: int, classes: int = 100) -> Classification:
    """Returns a task of random 3x32x32 images whose one epoch has so many steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1024, 3, 32, 32, generator=generator)
    labels = torch.randint(classes, (1024,), generator=generator)
    train, few = Images(images, labels, batch_size * steps), Images(images[:batch_size], labels[:batch_size])
    return Classification({"train": train, "val": few, "test": few}, classes, batch_size)


def digits(batch_size: int = 64) -> Classification:
    """Returns a task of the 1,797 handwritten digits that scikit-learn carries."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().div(16)[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = dict(zip(("train", "val", "test"), order.split([800, 97, 900]), strict=True))
    return Classification({name: Images(images[i], labels[i]) for name, i in parts.items()}, 10, batch_size)


def recipe(
    teacher: int, student: int, side: str = "student", seed: int = 0, scheduler: str = "constant", **trainer: Any
) -> Recipe:
    """Returns the recipe of KD between two ResNets by depth, or of one side alone where ``side`` is ``teacher``."""
    config = {
        "task": {"_target_": "benchmarks.images.Classification"},
        "pair": {
            "name": "resnets",
            "teacher": {"architecture": {"depth": teacher}},
            "student": {"architecture": {"depth": student}},
        },
        "student": {},
        "teacher": {},
        "trainer": {
            "epochs": 1,
            "val_every": 1,
            "optimizer": {"_target_": "torch.optim.SGD", "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY},
            "scheduler": {"_target_": f"kdbench.optim.{scheduler}"},
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
            **trainer,
        },
    }
    kd = {
        "_target_": "kdbench.methods.kd.KD",
        "temperature": TEMPERATURE,
        "weights": {"task": 1 - ALPHA, "kd": ALPHA},
    }
    plugins = {"method": PluginSpec.of("method", kd)} if side == "student" else {}
    inputs = {"teacher": Recipe("teacher", "teacher", config, {}, seed, "memory")} if plugins else {}
    return Recipe(side, side, config, plugins, seed, "memory", inputs)
