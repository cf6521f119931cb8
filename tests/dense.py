"""A dense toy: rectangles of coloured classes in noise, one class a pixel, some pixels ignored; small conv nets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Grid, Logits
from kdbench.task import Batch, DatasetInfo, ExportPlan, Task

CLASSES = 4
IGNORED = 255
SIZE = (12, 16)
STRIDE = 2
SIZES = {"train": 48, "val": 24, "test": 24}


class Net(nn.Module):
    """Class scores at a stride of 2; a label channel that does not come is zero."""

    def __init__(self, width: int, label_channel: bool = False) -> None:
        super().__init__()
        self.channels = 3 + label_channel
        self.stem = nn.Sequential(
            nn.Conv2d(self.channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, STRIDE, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        missing = max(self.channels - images.shape[1], 0)
        return self.head(self.body(self.stem(nn.functional.pad(images, (0, 0, 0, 0, 0, missing)))))


class Scenes(Dataset[tuple[Tensor, Tensor, int]]):
    """``size`` scenes of a split."""

    def __init__(self, size: int, split: str) -> None:
        draw = rng.numpy(0, "dense", split)
        colours = rng.generator(0, "dense")
        self.labels = torch.zeros(size, *SIZE, dtype=torch.long)
        for labels in self.labels:
            for _ in range(5):
                top, left = draw.integers(0, SIZE[0] - 3), draw.integers(0, SIZE[1] - 3)
                labels[top : top + draw.integers(3, 9), left : left + draw.integers(3, 9)] = int(draw.integers(CLASSES))
        images = torch.randn(CLASSES, 3, generator=colours)[self.labels].movedim(-1, 1)
        self.images = images + 1.2 * torch.randn(images.shape, generator=rng.generator(0, "dense", "noise", split))
        self.labels[:, :2, :3] = IGNORED

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        return self.images[key.sample], self.labels[key.sample], key.sample


def collate(samples: Sequence[tuple[Tensor, Tensor, int]]) -> Batch:
    images, labels, ids = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(labels), torch.tensor(ids))


class Data(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _loader(self, split: str) -> SeededLoader:
        return SeededLoader(Scenes(SIZES[split], split), 8, self.seed, collate, train=split == "train")

    def train_dataloader(self) -> SeededLoader:
        return self._loader("train")

    def val_dataloader(self) -> SeededLoader:
        return self._loader("val")

    def test_dataloader(self) -> SeededLoader:
        return self._loader("test")


def coarse(labels: Tensor) -> Tensor:
    """Labels at the stride of the class scores."""
    return labels[:, ::STRIDE, ::STRIDE]


class Dense(Task):
    name = "dense"
    capabilities = frozenset({"sample_id", "single_label", "differentiable_input", "dense_label", "label_as_input"})
    primary = "accuracy"

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float = 0.0) -> None:
        pass

    @classmethod
    def kinds(cls, side: Mapping[str, Any]) -> dict[str, type[Feature]]:
        return dict.fromkeys(side.get("taps") or {}, Grid) | {"logits": Logits}

    def dataset(self) -> DatasetInfo:
        return DatasetInfo("dense", True, "dense", SIZES)

    def data(self, seed: int) -> Data:
        return Data(seed)

    def build(self, architecture: Mapping[str, Any]) -> Any:
        return instantiate("pair.architecture", architecture)

    def describe(self, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        target = coarse(batch.targets)
        counts = target != IGNORED
        scores = Logits(outputs, class_dim=1, mask=counts, target=target.where(counts, 0))
        return {n: Grid(t) for n, t in taps.items()} | {"logits": scores}

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"ce": nn.functional.cross_entropy(outputs, coarse(batch.targets), ignore_index=IGNORED)}

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(CLASSES, average="micro", ignore_index=IGNORED)})

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs, coarse(batch.targets))

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {"dense_label": dense_label, "label_as_input": label_as_input}

    def export(self, model: nn.Module) -> ExportPlan:
        return ExportPlan(model, (torch.zeros(1, 3, *SIZE),), ("images",), dynamic={"images": {0: "batch"}})

    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image.Image:
        return Image.new("RGB", (8 * len(models), 8), "white")

    def example(self) -> Batch:
        return collate([(torch.zeros(3, *SIZE), torch.full(SIZE, IGNORED), 0)])

    def read(self, path: Path) -> Batch:
        try:
            image = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise KDBenchError(f"{path}: not a .npy image: {error}") from None
        return collate([(image, torch.full(SIZE, IGNORED), 0)])

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        return [{"classes": rows.argmax(0).tolist()} for rows in self.forward(model, batch.inputs)]


def dense_label(batch: Batch) -> Tensor:
    """Class of each pixel, -1 where it is ignored."""
    labels: Tensor = batch.targets.where(batch.targets != IGNORED, -1)
    return labels


def label_as_input(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture with a label channel."""
    return {**architecture, "label_channel": True}
