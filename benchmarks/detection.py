"""Detection: a step of the engine against mmdet's own training step, on the same detector and the same batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection

from benchmarks.engine import apart, train
from benchmarks.images import Loaders
from benchmarks.report import Row
from benchmarks.turns import DROPPED, Gate, take_turns
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.data import Key
from kdbench.task import Batch, DatasetInfo
from kdbench.training.fit import Training
from kdbench.training.recipe import Recipe
from tasks.detection.coco import Truth
from tasks.detection.data import Preprocess, collate
from tasks.detection.outputs import Outputs, Target
from tasks.detection.task import Detection, adapter

#: Of the rendered scenes: classes, height and width, and boxes of an image.
CLASSES, SIZE, BOXES = 8, (128, 160), 8
#: Images in memory.
IMAGES = 32


class Scenes(Dataset[Batch]):
    """Images of noise in memory with random boxes, repeated up to a length.

    Args:
        length: Samples of an epoch.
    """

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (IMAGES, 3, *SIZE), generator=generator, dtype=torch.uint8)
        corner = torch.rand(IMAGES, BOXES, 2, generator=generator) * torch.tensor([SIZE[1] - 44.0, SIZE[0] - 44.0])
        self.boxes = torch.cat([corner, corner + 14 + 28 * torch.rand(IMAGES, BOXES, 2, generator=generator)], 2)
        self.labels = torch.randint(CLASSES, (IMAGES, BOXES), generator=generator)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, keys: list[Key]) -> Batch:
        rows = [key.sample % IMAGES for key in keys]
        targets = [Target(self.boxes[row], self.labels[row], torch.zeros(0, 4)) for row in rows]
        return collate([*self.images[rows]], targets, torch.tensor([key.sample for key in keys]))


class Noise(Detection):
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

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Outputs, batch: Batch) -> None:
        """Scores against the boxes of the batch, as there are no files."""
        truth = []
        for target in batch.targets:
            boxes = target.boxes.numpy()
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            truth.append(Truth(boxes, target.labels.numpy(), areas, np.zeros(len(boxes), bool)))
        metrics.update(batch.ids, adapter(model).predict(model, outputs, batch.inputs), truth)


def recipe() -> Recipe:
    """Returns the recipe of the quick pair's student alone, at a constant learning rate."""
    spec: Mapping[str, Any] = config.load(["task=detection", "method=none"])
    constant = {"scheduler": {"_target_": "kdbench.optim.constant"}, "epochs": 1, "val_every": 1, "accelerator": "cpu"}
    return Recipe("student", "student", {**spec, "trainer": {**spec["trainer"], **constant}}, {}, 0, "noise")


class Step:
    """mmdet's own: ``train_step`` of the detector, with mmengine's wrapper of the optimizer of a recipe.

    Args:
        model: The detector.
        trainer: Of the recipe.
    """

    def __init__(self, model: nn.Module, trainer: Mapping[str, Any]) -> None:
        from mmengine.optim import OptimWrapper

        layout = torch.channels_last if trainer["channels_last"] else torch.contiguous_format
        self.model: Any = model.train().to(memory_format=layout)  # type: ignore[call-overload]
        options = {name: value for name, value in trainer["optimizer"].items() if name != "_target_"}
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        self.wrapper = OptimWrapper(optimizer, clip_grad={"max_norm": trainer["clip"]})

    def __call__(self, batch: Batch) -> Tensor:
        """Trains on one batch and returns its loss."""
        found: Tensor = self.model.train_step(as_mmdet(batch), self.wrapper)["loss"]
        return found


def as_mmdet(batch: Batch) -> dict[str, Any]:
    """Returns a batch as mmdet's own loaders give it: a list of BGR images, and what is on each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for target, shape in zip(batch.targets, batch.inputs.shapes(), strict=True):
        sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=target.boxes, labels=target.labels)
        sample.ignored_instances = InstanceData(bboxes=target.crowd, labels=target.labels.new_zeros(0))
        samples.append(sample)
    return {"inputs": [image.flip(0) for image in batch.inputs.images], "data_samples": samples}


def bare(gate: Gate, batch_size: int) -> None:
    """A loop of mmdet's steps."""
    task, own = Noise(batch_size, 1), recipe()
    step = Step(task.build(own.config["pair"]["student"]["architecture"]), own.trainer)
    scenes = Scenes(IMAGES)
    for turn in count():
        step(scenes.__getitems__([Key(0, turn * batch_size + i, 0) for i in range(batch_size)]))
        gate.step()


def engine(gate: Gate, batch_size: int, steps: int) -> None:
    """A training as a run does it."""
    train(Training(recipe(), Noise(batch_size, steps), untrained=True), gate)


def same_work(batch_size: int, steps: int = 3) -> float:
    """Trains engine and mmdet's step from the same weights on the same batches; see :func:`benchmarks.engine.apart`."""
    own = recipe()
    training, twin = (Training(own, Noise(batch_size, steps), untrained=True) for _ in range(2))
    step = Step(twin.cast.model("student"), own.trainer)
    return apart(training, (step(batch).item() for batch in twin.data.train_dataloader()), 1e-4)


def detection(rounds: int = 6, steps: int = 12, batch_size: int = 8) -> Iterator[Row]:
    """Cost of a training step of the quick pair's student, RetinaNet of mmdet."""
    gap = same_work(batch_size)
    plain = partial(bare, batch_size=batch_size)
    ours = partial(engine, batch_size=batch_size, steps=2 + rounds * (steps + DROPPED))
    times = take_turns({"bare": plain, "twin": plain, "engine": ours}, rounds, steps)
    yield Row.of(
        f"detection, engine over mmdet's own step (retinanet_mini, {SIZE[0]} x {SIZE[1]}, batch {batch_size})",
        "x",
        times["engine"].over(times["bare"]),
        times["twin"].over(times["bare"]),
        limit=1.05,
        detail=f"mmdet {times['bare'].median:.0f} ms, engine {times['engine'].median:.0f} ms a step; losses differ by "
        f"{gap:.0e} on the same weights and batches",
    )
