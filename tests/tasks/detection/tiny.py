"""The detection task on a few small rendered scenes, and data sets of a few pixels in COCO's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.task import Batch, DatasetInfo
from tasks.detection.data import Preprocess, collate
from tasks.detection.outputs import Target
from tasks.detection.task import Detection

SIZE = (64, 96)
CLASSES = ("person", "car", "bus")
#: Of every detector of mmdet that is built here.
SMALL = {"backbone": {"depth": 18, "base_channels": 4}, "neck": {"in_channels": [4, 8, 16, 32], "out_channels": 16}}
HEAD = {"in_channels": 16, "feat_channels": 16, "stacked_convs": 2}
MM = "tasks.detection.mm.create"
TV = "tasks.detection.tv.create"


def mm(config: str, **override: Any) -> dict[str, Any]:
    return {"_target_": MM, "config": config, "override": {**SMALL, **override}}


RETINANET = mm("retinanet_r50_fpn_1x_coco", bbox_head={**HEAD, "anchor_generator": {"octave_base_scale": 2}})
GFL = mm("gfl_r50_fpn_1x_coco", bbox_head={**HEAD, "reg_max": 8, "norm_cfg": {"type": "GN", "num_groups": 4}})
FCOS = mm("fcos_r50-caffe_fpn_gn-head_1x_coco", bbox_head=HEAD | {"norm_cfg": {"type": "GN", "num_groups": 4}})
FASTER = mm(
    "faster-rcnn_r50_fpn_1x_coco",
    rpn_head={"in_channels": 16, "feat_channels": 16},
    roi_head={"bbox_roi_extractor": {"out_channels": 16}, "bbox_head": {"in_channels": 16, "fc_out_channels": 32}},
)
RTMDET = {
    "_target_": MM,
    "config": "rtmdet_tiny_8xb32-300e_coco",
    "override": {
        "backbone": {"widen_factor": 0.125},
        "neck": {"in_channels": [32, 64, 128], "out_channels": 16},
        "bbox_head": {"in_channels": 16, "feat_channels": 16},
    },
}


def tv(detector: str) -> dict[str, Any]:
    own = {"detector": detector, "model_name": "resnet18", "width": 64 if detector == "fcos" else 16}
    return {"_target_": TV, **own, "channels": [4, 8, 16, 32], "stem_width": 4}


DETECTORS = {
    "retinanet": RETINANET,
    "gfl": GFL,
    "fcos": FCOS,
    "faster": FASTER,
    "rtmdet": RTMDET,
    "retinanet_tv": tv("retinanet"),
    "fcos_tv": tv("fcos"),
    "faster_tv": tv("faster_rcnn"),
}


def task(cache: Path, given: Mapping[str, Any] | None = None) -> Detection:
    """The task of ``conf/`` on a few small scenes."""
    spec = config.load(["task=detection", "preset=smoke"])
    few = {"train": None, "test": None, "render": {"size": SIZE, "train": 10, "test": 3}, "batch_size": 4}
    return Detection(data={**spec["data"], **few, "workers": 0, **(given or {})}, store=Store(cache))


def shaped(classes: Sequence[str] = CLASSES) -> Detection:
    """The task without any data."""
    made = Detection({}, Store(Path("/nonexistent")))
    reading = Preprocess("shapes", tuple(classes), typical=SIZE)
    made.restore(DatasetInfo("shapes", True, "", {}, classes=reading.classes, inputs=reading.as_inputs()))
    return made


def batch(counts: Sequence[int] = (2, 0, 3), size: tuple[int, int] = SIZE) -> Batch:
    """Random images with so many random boxes each, the second one smaller, the last one with a crowd."""
    generator = rng.generator(0, "tiny")
    images, targets = [], []
    for i, count in enumerate(counts):
        tall, wide = (size[0] - 10, size[1] - 20) if i == 1 else size
        images.append(torch.randint(256, (3, tall, wide), generator=generator, dtype=torch.uint8))
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([wide - 40.0, tall - 40.0])
        boxes = torch.cat([corner, corner + 12 + 25 * torch.rand(count, 2, generator=generator)], 1)
        crowd = torch.tensor([[0.0, 0.0, 20.0, 20.0]]) if i == len(counts) - 1 else torch.zeros(0, 4)
        targets.append(Target(boxes, torch.arange(count) % len(CLASSES), crowd))
    return collate(images, targets, torch.arange(len(counts)))


def coco(root: Path, count: int = 6, **changes: Any) -> Path:
    """Writes COCO's layout: noise with one box each, ids with holes, one image without boxes, one crowd.

    Args:
        root: Folder.
        count: Images of each split.
        changes: Of the content of the training file, by its key.
    """
    categories = [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}]
    for part in ("train", "val"):
        (root / f"{part}2017").mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(exist_ok=True)
        entries, boxes = [], []
        for i in range(count):
            noise = rng.numpy(i, "coco", part).integers(0, 256, (30, 40, 3)).astype("uint8")
            name = f"{part}{i}.jpg"
            Image.fromarray(noise).save(root / f"{part}2017" / name)
            entries.append({"id": 10 * i + 3, "file_name": name, "height": 30, "width": 40})
            if i:
                own = {"category_id": (7, 2)[i % 2], "bbox": [5, 5, 10.5, 12], "area": 100.0, "iscrowd": int(i == 5)}
                boxes.append({"id": i, "image_id": 10 * i + 3, **own})
        content = {"images": entries, "categories": categories, "annotations": boxes}
        if part == "train":
            content |= {name: change(content[name]) for name, change in changes.items()}
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    return root
