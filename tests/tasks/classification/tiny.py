"""The classification task on few digits, and on images that are only a shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.task import Batch, DatasetInfo
from tasks.classification.preprocess import Preprocess
from tasks.classification.sources.files import ImageFiles
from tasks.classification.task import Classification

NET = {"_target_": "tasks.classification.models.create", "model_name": "cifar_resnet8", "width": 4}
VIT = {
    "_target_": "tasks.classification.models.create",
    "model_name": "vit_tiny_patch16_224",
    "patch_size": 2,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}


def task(cache: Path, data: Mapping[str, Any] | None = None, **options: Any) -> Classification:
    """The task of ``conf/`` on 200 digits, 50 of them labelled."""
    spec = config.load(["task=classification", "data=digits", "preset=quick"])
    given = {**spec["data"], "train": 200, "labels": 50, "test": 60, "batch_size": 16, **(data or {})}
    own = {k: v for k, v in spec["task"].items() if k not in ("name", "_target_")}
    return Classification(data=given, store=Store(cache), **{**own, **options})


def shaped(size: tuple[int, int], channels: int = 3, classes: int = 100) -> Classification:
    """The task on images of a shape, without any data."""
    made = Classification({}, Store(Path("/nonexistent")))
    names = tuple(map(str, range(classes)))
    reading = Preprocess("shapes", names, (0.5,) * channels, (0.25,) * channels, ImageFiles((), size))
    made.restore(DatasetInfo("shapes", True, "", {}, classes=names, inputs=reading.as_inputs()))
    return made


def batch(made: Classification, n: int = 2) -> Batch:
    """Random images with random labels."""
    generator = rng.generator(0, "tiny")
    inputs = torch.randn(n, made.preprocess.channels, *made.preprocess.size, generator=generator)
    return Batch(inputs, torch.randint(len(made.preprocess.classes), (n,), generator=generator), torch.arange(n))
