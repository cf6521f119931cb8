"""COCO's average precision against one computed by hand, and its corners."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from kdbench.base import rng
from kdbench.task import scalars
from tasks.detection.coco import Truth
from tasks.detection.metrics import CocoAP
from tasks.detection.outputs import Found

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def truth(boxes: Sequence[Sequence[float]], labels: Sequence[int], crowd: Sequence[int] | None = None) -> Truth:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    areas = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    return Truth(array, np.array(labels), areas, np.array([bool(c) for c in crowd or [0] * len(labels)]))


def found(boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]) -> Found:
    return Found(torch.tensor(boxes).view(-1, 4).float(), torch.tensor(labels).long(), torch.tensor(scores).float())


def score(*images: tuple[Found, Truth], classes: Sequence[str] = ("a", "b")) -> dict[str, float]:
    metric = CocoAP(classes)
    for i, (own, true) in enumerate(images):
        metric.update(torch.tensor([5 * i]), [own], [true])
    return scalars(MetricCollection([metric]))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inner = np.prod(np.clip(high - low, 0, None))
    return float(inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner))


def reference(images: list[tuple[Found, Truth]], label: int, threshold: float) -> float:
    """AP of a class at a threshold, by COCO's 101 points, from its definition."""
    rows = []
    total = 0
    for i, (own, true) in enumerate(images):
        total += int((true.labels == label).sum())
        rows += [(float(s), i, b.double().numpy()) for b, c, s in zip(*own, strict=True) if int(c) == label]
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, i, box in sorted(rows, key=lambda row: -row[0]):
        true = images[i][1]
        free = [
            (iou(box, true.boxes[k].astype(np.float64)), k)
            for k in range(len(true.labels))
            if true.labels[k] == label and (i, k) not in taken
        ]
        best = max(free, default=(0.0, -1))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            taken.add((i, best[1]))
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    recall = right / total
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))


def test_it_is_cocos_from_its_definition():
    draw = rng.numpy(0, "coco metric")
    images = []
    for _ in range(6):
        corner = draw.uniform(0, 60, (5, 2))
        boxes = np.concatenate([corner, corner + draw.uniform(10, 40, (5, 2))], 1)
        labels = draw.integers(0, 2, 5)
        near = boxes[:4] + draw.normal(0, 2.5, (4, 4))
        wrong = draw.integers(0, 2, 4)
        guessed = np.where(draw.random(4) < 0.8, labels[:4], wrong)
        images.append(
            (found(near.tolist(), guessed.tolist(), draw.random(4).tolist()), truth(boxes.tolist(), labels.tolist()))
        )
    told = score(*images)
    for label, name in enumerate("ab"):
        expected = np.mean([reference(images, label, t) for t in THRESHOLDS])
        assert told[f"class_ap.{name}"] == pytest.approx(100 * expected, abs=1e-3)
    assert told["ap"] == pytest.approx((told["class_ap.a"] + told["class_ap.b"]) / 2)
    assert told["ap50"] == pytest.approx(50 * sum(reference(images, label, 0.5) for label in (0, 1)), abs=1e-3)


BOX = [10.0, 10.0, 50.0, 50.0]


def test_a_perfect_detector():
    told = score((found([BOX], [0], [0.9]), truth([BOX], [0])))
    assert [told[n] for n in ("ap", "ap50", "ap75", "ap_medium", "class_ap.a")] == pytest.approx([100] * 5)
    assert "ap_small" not in told  # there is none
    assert "class_ap.b" not in told


def test_nothing_found_is_zero_and_nothing_to_find_is_no_number():
    assert score((found([], [], []), truth([BOX], [0])))["ap"] == 0
    assert score((found([BOX], [0], [0.9]), truth([], []))) == {}
    assert math.isnan(CocoAP("ab").compute()["ap"])


def test_a_crowd_is_neither_found_nor_missed():
    images = found([BOX, [60.0, 60, 70, 70], [62.0, 60, 74, 70]], [0, 0, 0], [0.5, 0.9, 0.8])
    with_crowd = truth([BOX, [55, 55, 90, 90]], [0, 0], [0, 1])
    assert score((images, with_crowd))["ap"] == pytest.approx(100)
    assert score((images, truth([BOX], [0])))["ap"] == pytest.approx(100 / 3, abs=0.1)


def test_an_image_without_boxes_counts_what_is_found_there():
    good = (found([BOX], [0], [0.5]), truth([BOX], [0]))
    assert score(good, (found([BOX], [0], [0.9]), truth([], [])))["ap"] == pytest.approx(50, abs=0.1)
    assert score(good, (found([], [], []), truth([], [])))["ap"] == pytest.approx(100)
