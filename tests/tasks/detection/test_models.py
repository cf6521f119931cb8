"""Detectors of both packages: outputs, losses, detections and what methods ask of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.features import Edges, Levels
from kdbench.roles.sources import Network
from kdbench.signals import total
from tasks.detection import mm, operators
from tasks.detection.task import adapter, boxes_of, cross_head
from tests.tasks.detection import tiny

TOWERS = {f"{kind}_tower.{i}": f"bbox_head.{kind}_convs[-1]@{i}:input" for kind in ("cls", "reg") for i in range(1, 6)}


def build(name: str) -> nn.Module:
    with rng.scope(0, "test"):
        return tiny.shaped().build(tiny.DETECTORS[name])


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    return {name: build(name) for name in tiny.DETECTORS}


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_a_detector_learns_and_detects(name, built):
    task, batch, model = tiny.shaped(), tiny.batch(), built[name].train()
    outputs = task.forward(model, batch.inputs)
    rows = outputs.logits.shape[1]
    assert outputs.boxes.shape == (3, rows, 4)
    assert outputs.anchors.shape == (rows, 4)
    assert len(outputs.level()) == rows
    losses = task.loss(model, outputs, batch)
    assert all(value.shape == () and value.isfinite() for value in losses.values())
    assert max(float(value.detach()) for value in losses.values()) < 20  # without its initialisation it is hundreds
    total(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        found = adapter(model).predict(model, task.forward(model, batch.inputs), batch.inputs)
    assert len(found) == 3
    for own, (tall, wide) in zip(found, batch.inputs.shapes(), strict=True):
        assert own.boxes.shape == (len(own.labels), 4)
        assert not len(own.boxes) or float(own.boxes[:, [0, 2]].max()) <= wide
        assert not len(own.boxes) or float(own.boxes[:, [1, 3]].max()) <= tall


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_what_is_exported_is_what_is_scored(name, built):
    task, model = tiny.shaped(), built[name].eval()
    example = task.example()
    with torch.no_grad():
        outputs = task.forward(model, example.inputs)
        scores, boxes = adapter(model).raw(model, example.inputs.images.float())
    assert torch.allclose(scores, outputs.logits.sigmoid(), atol=1e-4)
    assert torch.allclose(boxes, outputs.boxes, atol=1e-2)


@pytest.mark.parametrize("name", ["retinanet", "gfl", "fcos"])
def test_detections_are_decoded_boxes(name, built):
    task, batch, model = tiny.shaped(), tiny.batch((1,)), built[name].eval()
    with torch.no_grad():
        outputs = task.forward(model, batch.inputs)
        outputs = outputs._replace(raw=(tuple(m + 8 for m in outputs.raw[0]), *outputs.raw[1:]))  # so that all are sure
        (found,) = mm.predict(model, outputs, batch.inputs)
    tall, wide = tiny.SIZE
    clipped = outputs.boxes[0].clamp(min=0)
    clipped = torch.minimum(clipped, torch.tensor([wide, tall, wide, tall]))
    assert len(found.boxes)
    assert float((found.boxes[:, None] - clipped).abs().amax(2).amin(1).max()) < 1e-3


@pytest.mark.parametrize("name", ["retinanet", "gfl"])
def test_the_rest_of_a_head_gives_what_the_whole_gives(name, built):
    task, batch, model = tiny.shaped(), tiny.batch(), built[name].eval()
    taps = TOWERS | ({"edges": "bbox_head#1"} if name == "gfl" else {})
    features = Network(task, model, taps).answer(batch).features
    towers = [features[f"{kind}_tower"] for kind in ("cls", "reg")]
    assert all(isinstance(tower, Levels) for tower in towers)
    found = cross_head(model, *(tower.maps() for tower in towers if isinstance(tower, Levels)))
    assert len(model.bbox_head.cls_convs) == 2
    for name, feature in found.items():
        assert torch.allclose(feature.values, features[name].values, atol=1e-4)
    if "edges" in found:
        assert isinstance(features["edges"], Edges)
        assert features["edges"].values.shape[2:] == (4, 9)


@pytest.mark.parametrize("name", ["retinanet", "gfl", "retinanet_tv", "faster"])
def test_the_assigner_gives_every_box_an_anchor_that_overlaps(name, built):
    task, batch = tiny.shaped(), tiny.batch()
    boxes, labels = boxes_of(batch)
    outputs = task.forward(built[name].eval(), batch.inputs)
    rows = task.ops()["assigned"](built[name], batch, task.describe(outputs, {}, batch)["boxes"])
    assert rows.shape == outputs.logits.shape[:2]
    assert not (rows[1] >= 0).any()  # an image without boxes
    for i in (0, 2):
        chosen = rows[i] >= 0
        assert set(rows[i][chosen].tolist()) == set(range(int((labels[i] >= 0).sum())))
        middle = (outputs.anchors[chosen, :2] + outputs.anchors[chosen, 2:]) / 2
        own = boxes[i][rows[i][chosen]]
        assert float(((middle > own[:, :2] - 20) & (middle < own[:, 2:] + 20)).all(1).float().mean()) > 0.8


def test_unsupervised_samples_have_no_part(built):
    task, batch, model = tiny.shaped(), tiny.batch(), built["retinanet"].train()
    outputs = task.forward(model, batch.inputs)
    batch.supervised = torch.tensor([True, False, False])
    some = task.loss(model, outputs, batch)
    alone = tiny.batch()
    whole = task.loss(model, outputs, alone)
    assert not torch.allclose(some["loss_cls"], whole["loss_cls"])
    assert boxes_of(batch)[1][2].tolist() == [-1, -1]
    batch.supervised = torch.zeros(3, dtype=torch.bool)
    assert all(float(value.detach()) == 0 for value in task.loss(model, outputs, batch).values())


@pytest.mark.slow
def test_the_build_leaves_no_scope_and_imports_no_data_sets():
    code = (
        "import sys, torch\n"
        "from tests.tasks.detection import tiny\n"
        "tiny.shaped().build(tiny.RETINANET)\n"
        "from mmengine.registry import DefaultScope\n"
        "scope = DefaultScope.get_current_instance()\n"
        "print(scope, 'mmdet.datasets' in sys.modules, 'mmdet.evaluation' in sys.modules)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "None False False\n"


def test_an_operator_that_is_not_there_says_so():
    stand_in = operators.Operators("mmcv._ext")
    with pytest.raises(KDBenchError, match="compiled operator 'deform_conv_forward': make setup-mmcv-ops"):
        stand_in.deform_conv_forward()
    with pytest.raises(KDBenchError, match="offset=1"):
        stand_in.nms(torch.zeros(1, 4), torch.zeros(1), 0.5, 1)
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]])
    assert stand_in.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5, 0).tolist() == [1, 2]


def architecture(**changes: Any) -> dict[str, Any]:
    return {**tiny.RETINANET, **changes}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"config": "retinanet_r51_fpn_1x_coco"}, "neither a file nor a config of mmdet: did you mean 'retinanet_r"),
        ({"config": "detr_r50_8xb2-150e_coco", "override": {}}, "DETR has no head that tells classes and boxes"),
        ({"override": {"type": "RetinaNett"}}, "mmdet has no detector 'RetinaNett': did you mean 'RetinaNet'"),
        ({"override": {"backbone": {"deep": 18}}}, "mmdet cannot build RetinaNet"),
        ({"num_classes": 80}, "architecture.num_classes=80, but shapes has 3"),
    ],
)
def test_bad_architectures_are_one_line(changes, line):
    with pytest.raises(KDBenchError, match=line) as caught:
        tiny.shaped().build(architecture(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("model = 3\n", "not a config of a detector: expected 'model' with its 'type'"),
        ("import nothing_there\n", "not a"),
    ],
)
def test_a_config_that_is_not_mmdets_is_one_line(tmp_path, content, line):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(KDBenchError, match=line):
        tiny.shaped().build(architecture(config=str(path)))


def test_a_config_by_its_path(tmp_path):
    path = tmp_path / "mine.py"
    head = "dict(type='RetinaHead', num_classes=80, in_channels=16, feat_channels=16, stacked_convs=1)"
    base = mm.package() / mm.CONFIGS / "_base_" / "models" / "retinanet_r50_fpn.py"
    path.write_text(f"_base_ = [{str(base)!r}]\nmodel = dict(bbox_head={head})\n")
    model: Any = tiny.shaped().build({"_target_": tiny.MM, "config": str(path), "override": tiny.SMALL})
    assert model.bbox_head.num_classes == len(tiny.CLASSES)


def test_what_is_no_detector_is_one_line():
    with pytest.raises(KDBenchError, match="Linear is no detector of mmdet or torchvision"):
        adapter(nn.Linear(1, 1))
