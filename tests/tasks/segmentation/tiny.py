"""The segmentation task on a few small rendered streets, and data sets of a few pixels in real layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.task import Batch, DatasetInfo
from tasks.segmentation.preprocess import Preprocess
from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.task import Segmentation

NET = {
    "_target_": "tasks.segmentation.models.create",
    "model_name": "resnet18",
    "channels": [8, 8, 16, 16],
    "stem_type": "deep",
    "stem_width": 4,
    "head_width": 8,
}
#: Two classes of the streets, and pixels of none.
CLASSES = ("road", "sky", "person")


def task(cache: Path, data: str = "streets", given: Mapping[str, Any] | None = None, **options: Any) -> Segmentation:
    """The task of ``conf/``; of streets a few small ones."""
    spec = config.load(["task=segmentation", f"data={data}", "preset=smoke"])
    few: dict[str, Any] = {"train": None, "test": None, "size": None}
    if data == "streets":
        few = {"train": 10, "test": 3, "render": {"size": (32, 64)}}
    own = {**spec["data"], **few, "batch_size": 4, "workers": 0, **(given or {})}
    made = {k: v for k, v in spec["task"].items() if k not in ("name", "_target_")}
    return Segmentation(data=own, store=Store(cache), **{**made, **options})


def shaped(classes: int = 3, size: tuple[int, int] | None = None) -> Segmentation:
    """The task without any data."""
    made = Segmentation({}, Store(Path("/nonexistent")))
    reading = Preprocess("shapes", tuple(map(str, range(classes))), size=size)
    made.restore(DatasetInfo("shapes", True, "", {}, classes=reading.classes, inputs=reading.as_inputs()))
    return made


def batch(classes: int = 3, size: tuple[int, int] = (32, 48), n: int = 2, ignored: float = 0.2) -> Batch:
    """Random images with random classes, some pixels of none."""
    generator = rng.generator(0, "tiny")
    labels = torch.randint(classes, (n, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORED
    return Batch(torch.randn(n, 3, *size, generator=generator), labels, torch.arange(n))


def image(seed: int = 0, size: tuple[int, int] = (20, 30)) -> Image.Image:
    """An RGB image of noise."""
    return Image.fromarray(rng.numpy(seed, "image").integers(0, 256, (*size, 3), dtype=np.uint8))


def mask(seed: int = 0, size: tuple[int, int] = (20, 30), numbers: tuple[int, ...] = (0, 1, 2)) -> Image.Image:
    """A mask of blocks, each of the numbers in it."""
    drawn = rng.numpy(seed, "mask").integers(0, len(numbers), (-(-size[0] // 5), -(-size[1] // 5)))
    drawn.flat[: len(numbers)] = np.arange(len(numbers))
    whole = np.array(numbers)[drawn].repeat(5, 0).repeat(5, 1)[: size[0], : size[1]]
    return Image.fromarray(whole.astype(np.uint8 if max(numbers) < 256 else np.uint16))
