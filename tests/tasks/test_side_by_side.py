"""Pictures of the same samples in several views: of images, of maps of classes, and by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.task import Batch, DatasetInfo, Task
from tasks.classification.preprocess import Preprocess
from tasks.classification.sources.files import ImageFiles
from tasks.classification.task import Classification
from tasks.segmentation.picture import WIDTH
from tests.tasks.segmentation import tiny


class Constant(nn.Module):
    """Says the same of everything."""

    def __init__(self, label: int, maps: bool = False) -> None:
        super().__init__()
        self.scores = torch.nn.functional.one_hot(torch.tensor([label]), 3).float()
        self.maps = maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.scores.expand(len(images), -1)
        return scores[..., None, None].expand(-1, -1, *images.shape[2:]) if self.maps else scores


def test_by_default_the_picture_of_each_view_is_below_that_of_the_one_before():
    class Drawn(Task):
        name = "drawn"

        def picture(self, batch: Batch, models: Any) -> Image.Image:
            return Image.new("RGB", (3 + len(batch), 2), "red" if len(batch) > 1 else "blue")

    one, two = (Batch(None, None, torch.arange(size)) for size in (1, 2))
    joined = Drawn().side_by_side({"a": one, "b": two}, {})
    assert joined.size == (5, 4)
    assert [joined.getpixel(place) for place in ((0, 0), (4, 0), (4, 3))] == [(0, 0, 255), (255,) * 3, (255, 0, 0)]


def images(size: int = 2) -> Batch:
    inputs = torch.randn(size, 3, 8, 8, generator=rng.generator(0, "views"))
    return Batch(inputs, torch.arange(size) % 3, torch.arange(size))


def test_images_have_a_card_in_each_view_with_what_the_models_say():
    task = Classification({}, Store(Path("/nonexistent")))
    reading = Preprocess("shapes", ("round", "square", "flat"), (0.5,) * 3, (0.2,) * 3, ImageFiles((), (8, 8)))
    task.restore(DatasetInfo("shapes", True, "", {}, classes=reading.classes, inputs=reading.as_inputs()))
    batch = images(40)
    views = {"original": batch, "augmented": batch.with_inputs(batch.inputs.flip(3))}
    models = {"teacher": Constant(0), "student": Constant(1)}
    drawn = task.side_by_side(views, models)
    assert drawn.width == 1500
    assert task.side_by_side({name: images(3) for name in views}, models).height < drawn.height
    same = task.side_by_side(dict.fromkeys(views, batch), models)
    assert not np.array_equal(np.asarray(drawn), np.asarray(same))
    others = task.side_by_side(views, {**models, "student": Constant(2)})
    assert not np.array_equal(np.asarray(drawn), np.asarray(others))


def test_maps_of_classes_follow_each_other_in_the_order_of_the_views():
    task, batch = tiny.shaped(), tiny.batch()
    views = {"original": batch, "augmented": batch.with_inputs(batch.inputs.flip(3), targets=batch.targets.flip(2))}
    models = {"teacher": Constant(0, maps=True), "student": Constant(1, maps=True)}
    drawn = task.side_by_side(views, models)
    assert drawn.width == WIDTH
    one = task.side_by_side({"original": batch}, models)
    assert np.array_equal(np.asarray(drawn)[:100], np.asarray(one)[:100])
