"""Semantic segmentation: a step of the engine against a plain PyTorch loop that does the same work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from benchmarks.engine import apart, train
from benchmarks.images import Loaders
from benchmarks.report import Row
from benchmarks.turns import DROPPED, Gate, take_turns
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import PluginSpec
from kdbench.data import Key
from kdbench.task import Batch, DatasetInfo
from kdbench.training.fit import Training
from kdbench.training.recipe import Recipe
from tasks.segmentation.preprocess import Preprocess
from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.task import Segmentation

#: Of the rendered streets: classes, height and width; and cells of the logits along a side.
CLASSES, SIZE, STRIDE = 12, (96, 192), 4
#: Images in memory, and the share of their pixels that has no class.
IMAGES, VOID = 64, 0.1


class Scenes(Dataset[Batch]):
    """Images of noise in memory, repeated up to a length.

    Args:
        length: Samples of an epoch.
    """

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(IMAGES, 3, *SIZE, generator=generator)
        self.labels = torch.randint(CLASSES, (IMAGES, *SIZE), generator=generator)
        self.labels[torch.rand(self.labels.shape, generator=generator) < VOID] = IGNORED
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: list[Key]) -> Batch:
        rows = [key.sample % IMAGES for key in keys]
        return Batch(self.images[rows], self.labels[rows], torch.tensor([key.sample for key in keys]))


class Noise(Segmentation):
    """The task on images of noise whose one epoch has so many steps."""

    def __init__(self, batch_size: int, steps: int) -> None:
        super().__init__({}, Store(Path("unused")))
        reading = Preprocess("noise", tuple(map(str, range(CLASSES))), typical=SIZE)
        self.restore(DatasetInfo("noise", True, "noise", {}, classes=reading.classes, inputs=reading.as_inputs()))
        few = Scenes(batch_size)
        self.loaders = partial(Loaders, {"train": Scenes(batch_size * steps), "val": few, "test": few}, batch_size)

    def data(self, seed: int) -> Loaders:
        return self.loaders(seed)

    def augmented(self) -> bool:
        return False


def recipe(**trainer: Any) -> Recipe:
    """Returns the recipe of pixel-wise KD as configured, at a constant learning rate; ``trainer`` changes keys."""
    spec: Mapping[str, Any] = config.load(["task=segmentation", "method=kd"])
    constant = {"scheduler": {"_target_": "kdbench.optim.constant"}, "epochs": 1, "val_every": 1}
    told = {**spec, "trainer": {**spec["trainer"], **constant, "accelerator": "cpu", **trainer}}
    method = {name: value for name, value in spec["method"].items() if name != "name"}
    teacher = Recipe("teacher", "teacher", told, {}, 0, "noise")
    return Recipe(
        "student", "student", told, {"method": PluginSpec.of("method", method)}, 0, "noise", {"teacher": teacher}
    )


class Loop:
    """What one writes by hand, with the optimizer of a recipe.

    Args:
        teacher: Frozen.
        student: Trained.
        trainer: Of the recipe.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, trainer: Mapping[str, Any]) -> None:
        self.layout = torch.channels_last if trainer["channels_last"] else torch.contiguous_format
        for model in (teacher, student):
            model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.teacher, self.student = teacher.eval().requires_grad_(False), student.train()
        options = {name: value for name, value in trainer["optimizer"].items() if name != "_target_"}
        self.optimizer = torch.optim.AdamW(student.parameters(), **options)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Trains on one batch and returns its loss."""
        images = images.contiguous(memory_format=self.layout)
        with torch.no_grad():
            guide = self.teacher(images)
        logits = self.student(images)
        known = labels[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE] != IGNORED
        ours, theirs = (values.movedim(1, -1)[known].log_softmax(1) for values in (logits, guide))
        whole = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(whole, labels, ignore_index=IGNORED)
        loss = loss + F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def bare(gate: Gate, batch_size: int) -> None:
    """The plain loop."""
    task, own = Noise(batch_size, 1), recipe()
    scenes = Scenes(IMAGES)
    data = TensorDataset(scenes.images, scenes.labels)
    order = RandomSampler(data, replacement=True, num_samples=10**9)
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=False))
    teacher, student = (task.build(own.config["pair"][side]["architecture"]) for side in ("teacher", "student"))
    loop = Loop(teacher, student, own.trainer)
    for batch in loader:
        loop.step(*batch)
        gate.step()


def engine(gate: Gate, batch_size: int, steps: int) -> None:
    """A training as a run does it."""
    train(Training(recipe(), Noise(batch_size, steps), untrained=True), gate)


def same_work(batch_size: int, steps: int = 3) -> float:
    """Trains engine and loop from the same weights on the same batches; see :func:`benchmarks.engine.apart`."""
    own = recipe()
    training, twin = (Training(own, Noise(batch_size, steps), untrained=True) for _ in range(2))
    loop = Loop(twin.cast.model("teacher"), twin.cast.model("student"), own.trainer)
    plain = (loop.step(b.inputs, b.targets).item() for b in twin.data.train_dataloader())
    return apart(training, plain, 1e-4)


def segmentation(rounds: int = 6, steps: int = 20, batch_size: int = 4) -> Iterator[Row]:
    """Cost of a step of pixel-wise KD on the pair and the images of the quick preset."""
    gap = same_work(batch_size)
    plain = partial(bare, batch_size=batch_size)
    enough = 2 + rounds * (steps + DROPPED)
    ours = partial(engine, batch_size=batch_size, steps=enough)
    times = take_turns({"bare": plain, "twin": plain, "engine": ours}, rounds, steps)
    yield Row.of(
        f"segmentation, engine over a plain loop (resnet18_w32_w8, {SIZE[0]} x {SIZE[1]}, batch {batch_size})",
        "x",
        times["engine"].over(times["bare"]),
        times["twin"].over(times["bare"]),
        limit=1.05,
        detail=f"plain loop {times['bare'].median:.0f} ms, engine {times['engine'].median:.0f} ms a step; losses "
        f"differ by {gap:.0e} on the same weights and batches",
    )
