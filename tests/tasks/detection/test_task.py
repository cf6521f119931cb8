"""The task: features, side information, scores, pictures and files of a user's."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import pytest
import torch
from PIL import Image

from kdbench.base import rng
from kdbench.configuration import config
from kdbench.errors import KDBenchError
from kdbench.features import Boxes, Edges, Grid, Levels, Logits
from kdbench.task import scalars
from tasks.detection.outputs import Found, Target
from tasks.detection.task import Detection, boxes_of
from tests.tasks.detection import tiny


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Detection:
    made = tiny.task(tmp_path_factory.mktemp("cache"))
    made.prepare(progress=False)
    return made


@pytest.fixture(scope="module")
def model(task):
    with rng.scope(0, "test"):
        return task.build(tiny.RETINANET)


PAIRS = [name for name in config.options("pair") if config.option("pair", name).get("task") == "detection"]


@pytest.mark.parametrize("pair", PAIRS)
def test_kinds_of_a_pair(pair):
    spec = config.load(["task=detection", f"pair={pair}"])["pair"]
    kinds = Detection.kinds(spec["student"])
    assert [name for name, kind in kinds.items() if issubclass(kind, Grid)] == ["p3", "p4", "p5", "p6", "p7"]
    assert kinds["logits"] is Logits
    assert kinds["boxes"] is Boxes
    assert (kinds.get("cls_tower") is Levels) == (pair != "retinanet_tv")
    assert (kinds.get("edges") is Edges) == pair.startswith("gfl")
    assert kinds == Detection.kinds(spec["teacher"])


def test_features(task, model):
    batch = next(iter(task.data(0).train_dataloader()))
    outputs = task.forward(model.train(), batch.inputs)
    maps = model.neck(model.backbone(torch.zeros(len(batch), 3, *tiny.SIZE)))
    features = task.describe(outputs, {"p3": maps[0], "p5": maps[2]}, batch)
    assert features["p3"].stride == (8, 8)
    assert features["p5"].stride == (32, 32)
    logits, boxes = features["logits"], features["boxes"]
    assert logits.law == "bernoulli"
    assert boxes.anchors.shape == (logits.values.shape[1], 4)
    assert boxes.level.unique().tolist() == [0, 1, 2, 3, 4]
    middle = (boxes.anchors[:, :2] + boxes.anchors[:, 2:]) / 2
    inside = torch.stack(
        [
            ((middle[:, None] >= t.boxes[:, :2]) & (middle[:, None] < t.boxes[:, 2:])).all(2).any(1)
            for t in batch.targets
        ]
    )
    assert inside.any()
    assert torch.equal(logits.weight > logits.weight.min(), inside)
    assert float(logits.weight.sum()) == pytest.approx(2, rel=1e-4)
    batch.distilled = torch.arange(len(batch)) == 1
    assert task.describe(outputs, {}, batch)["logits"].sample().unique().tolist() == [1]


def test_true_boxes_are_padded():
    batch = tiny.batch((2, 0, 3))
    boxes, labels = boxes_of(batch)
    assert boxes.shape == (3, 3, 4)
    assert labels.tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, 2]]
    assert boxes_of(tiny.batch((0, 0)))[0].shape == (2, 0, 4)


def test_scores_are_in_the_pixels_of_the_files(tmp_path, monkeypatch):
    made = tiny.task(tmp_path, {"root": str(tiny.coco(tmp_path / "coco")), "render": {}, "size": (60, 80)})
    data = made.data(0)
    metrics = made.metrics("test")

    class Perfect:
        targets: ClassVar[list[Target]] = []

        def predict(self, model, outputs, inputs):
            return [Found(t.boxes, t.labels, torch.ones(len(t.labels))) for t in self.targets]

    perfect, nothing = Perfect(), cast(Any, None)
    monkeypatch.setattr("tasks.detection.task.adapter", lambda model: perfect)
    for batch in data.test_dataloader():
        Perfect.targets = batch.targets
        made.score(metrics, nothing, nothing, batch)
    assert scalars(metrics)["ap"] == pytest.approx(100)


def test_pictures(task, model):
    batch = next(iter(task.data(0).test_dataloader()))
    drawn = task.picture(batch, {"teacher": model, "student": model})
    assert drawn.width == 1500
    assert len(drawn.getcolors(1 << 20)) > 100
    assert min(task.show(batch, model, "mine").size) > 1


def test_a_file_of_a_users(task, model, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    batch = task.read(tmp_path / "a.png")
    assert batch.inputs.images.shape == (1, 3, 40, 50)
    (found,) = task.predictions(model.eval(), batch)
    assert found["size"] == [40, 50]
    assert isinstance(found["objects"], list)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(KDBenchError, match="not a readable image"):
        task.read(tmp_path / "b.png")


def test_a_record_is_enough(task, model):
    info = task.dataset()
    again = tiny.shaped()
    again.restore(info)
    assert again.preprocess == task.preprocess
    assert again.example().inputs.images.shape[2:] == task.example().inputs.images.shape[2:]


def test_counts(task):
    counts = task.counts()
    assert sum(c.samples for c in counts.values()) == 13
    assert all(set(c.labels) == set(tiny.CLASSES) for c in counts.values())


def test_a_tap_that_is_no_map_is_one_line(task, model):
    batch = tiny.batch()
    outputs = task.forward(model, batch.inputs)
    with pytest.raises(KDBenchError, match="tap 'p3' has a tuple, expected a map"):
        task.describe(outputs, {"p3": outputs.features}, batch)
