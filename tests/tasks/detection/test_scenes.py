"""Rendered scenes with boxes."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.configuration import config
from kdbench.errors import KDBenchError
from tasks.detection.coco import read_annotations
from tasks.detection.scenes import SMALLEST, Render, render, things, write


def test_boxes_are_those_of_the_mask():
    numbers = np.zeros((40, 50), dtype=np.int64)
    numbers[5:15, 10:22] = 1  # a car
    numbers[30:36, 40:45] = 2  # a small person
    numbers[0:3, 0:4] = 3  # hardly seen
    numbers[20:30, 0:10] = 4  # a pole
    found = things(numbers, ("road", "car", "person", "car", "pole"))
    assert [(t.kind, t.box, t.area, t.crowd) for t in found] == [
        ("car", (10, 5, 12, 10), 120, False),
        ("person", (40, 30, 5, 6), 30, True),
    ]


def test_objects_are_large_enough_and_some_are_small_or_crowded():
    options = Render(**config.load(["task=detection"])["data"]["render"])
    found = [thing for row in range(24) for thing in render(options, "train", row)[1]]
    sides = np.array([np.sqrt(t.box[2] * t.box[3]) for t in found if not t.crowd])
    assert 18 <= np.median(sides) <= 26
    assert (sides < 12).mean() > 0.05
    assert any(t.crowd for t in found)
    assert {t.kind for t in found} == {"person", "car", "bus"}
    assert all(np.sqrt(t.box[2] * t.box[3]) < SMALLEST for t in found if t.crowd)


def test_a_scene_depends_on_its_row_alone(tmp_path):
    options = Render(size=(32, 48), train=3, test=2)
    write(tmp_path / "a", options)
    write(tmp_path / "b", Render(size=(32, 48), train=4, test=1))
    few, more = (
        read_annotations(top / "annotations" / "instances_train2017.json", top / "train2017")
        for top in (tmp_path / "a", tmp_path / "b")
    )
    assert [*few.categories] == [1, 3, 6]
    for one, other in zip(few.samples, more.samples, strict=False):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert np.array_equal(one.truth.boxes, other.truth.boxes)
    assert few.samples[0].path.read_bytes() != few.samples[1].path.read_bytes()


def test_wrong_densities_are_one_line():
    with pytest.raises(KDBenchError, match=r"data\.render\.density\.cars: no such thing: did you mean 'car'"):
        Render(density={"cars": 3})
