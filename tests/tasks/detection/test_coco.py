"""COCO's layout, as it should be and as people have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.errors import KDBenchError
from tasks.detection.data import DataOptions, Source, flipped
from tasks.detection.outputs import Target
from tasks.detection.task import Detection
from tests.tasks.detection import tiny


def opened(root: Path, **options: Any) -> Source:
    return Source(DataOptions(root=str(root), batch_size=2, **options), Store(root / "cache"), False)


def box(entries: list[Any], number: int, **changes: Any) -> list[Any]:
    return [entry | (changes if entry["id"] == number else {}) for entry in entries]


def test_ids_with_holes_crowds_and_images_without_boxes(tmp_path):
    source = opened(tiny.coco(tmp_path))
    assert source.preprocess.classes == ("dog", "cat")  # in the order of the ids
    assert (len(source.train), len(source.val), len(source.test)) == (5, 1, 6)
    by_name = {s.name: source.target(s) for part in (source.train, source.val) for s in part.samples}
    assert by_name["train0"].boxes.shape == (0, 4)
    assert by_name["train1"].boxes.tolist() == [[5, 5, 15.5, 17]]
    assert [by_name[f"train{i}"].labels.tolist() for i in (1, 2)] == [[0], [1]]
    assert (len(by_name["train5"].boxes), len(by_name["train5"].crowd)) == (0, 1)


def test_the_configuration_reads_a_folder(tmp_path):
    root = tiny.coco(tmp_path / "coco")
    spec = config.load(["task=detection", "preset=paper", f"data.root={root}"])
    own = {**spec["data"], "workers": 0}
    task = Detection(data=own, store=Store(tmp_path / "cache"))
    assert task.dataset().sizes == {"train": 5, "val": 1, "test": 6}
    batch = next(iter(task.data(0).test_dataloader()))
    assert batch.inputs.shapes() == [(800, 1067)] * 6


def test_a_class_alone(tmp_path):
    source = opened(tiny.coco(tmp_path), classes=["cat"])
    assert source.preprocess.classes == ("cat",)
    labels = [source.target(s).labels.tolist() for part in (source.train, source.val) for s in part.samples]
    assert sorted(map(tuple, labels)) == [(), (), (), (), (0,), (0,)]


def test_boxes_are_cut_off_at_the_border_and_those_of_no_area_left_out(tmp_path, caplog):
    changed = lambda entries: box(box(entries, 1, bbox=[-5, 20, 10, 100]), 2, bbox=[50, 5, 10, 10])  # noqa: E731
    source = opened(tiny.coco(tmp_path, annotations=changed))
    by_name = {s.name: source.target(s) for part in (source.train, source.val) for s in part.samples}
    assert by_name["train1"].boxes.tolist() == [[0, 20, 5, 30]]
    assert len(by_name["train2"].boxes) == 0
    assert "1 boxes of no area within their image are left out, first annotation 2" in caplog.text


def test_images_are_scaled_with_their_boxes_and_joined(tmp_path):
    root = tiny.coco(tmp_path)
    Image.fromarray(np.zeros((40, 30, 3), dtype=np.uint8)).save(root / "val2017" / "val1.jpg")
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][1] |= {"height": 40, "width": 30}
    path.write_text(json.dumps(content))
    source = opened(root, size=(60, 80))
    (first, *_) = source.test.samples
    assert source.read(first).shape == (3, 60, 80)
    assert source.target(source.test.samples[1]).boxes.tolist() == [[10, 10, 31, 34]]
    batch = next(iter(_data(source).test_dataloader()))
    assert batch.inputs.images.shape == (2, 3, 80, 80)
    assert batch.inputs.shapes() == [(60, 80), (80, 60)]
    assert not batch.inputs.images[0, :, 60:].any()
    assert batch.ids.tolist() == [6, 7]


def _data(source: Source) -> Any:
    from tasks.detection.data import DetectionData

    return DetectionData(source, 0)


def test_mirrored_boxes():
    target = Target(torch.tensor([[1.0, 2, 4, 8]]), torch.tensor([1]), torch.tensor([[0.0, 0, 2, 2]]))
    mirrored = flipped(target, 10)
    assert mirrored.boxes.tolist() == [[6, 2, 9, 8]]
    assert mirrored.crowd.tolist() == [[8, 0, 10, 2]]
    assert torch.equal(flipped(mirrored, 10).boxes, target.boxes)


def test_a_changed_box_is_another_data_set_and_test_boxes_are_not_learned(tmp_path):
    first = opened(tiny.coco(tmp_path / "a"))
    again = opened(tiny.coco(tmp_path / "b"))
    other = opened(tiny.coco(tmp_path / "c", annotations=lambda e: box(e, 1, bbox=[5, 5, 10, 12])))
    assert first.digest == again.digest
    assert first.learned != other.learned
    path = tmp_path / "b" / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("10.5", "11.5"))
    changed = opened(tmp_path / "b")
    assert changed.digest != first.digest
    assert changed.learned == first.learned


def test_fewer_training_images_keep_validation_apart(tmp_path):
    root = tiny.coco(tmp_path, count=40)
    whole, few = opened(root), opened(root, train=12)
    names = lambda part: {s.name for s in part.samples}  # noqa: E731
    assert len(few.train) + len(few.val) == 12
    assert names(few.val) <= names(whole.val)
    assert names(few.train) <= names(whole.train)


def _cut(root: Path) -> None:
    path = root / "train2017" / "train3.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _gone(root: Path) -> None:
    (root / "train2017" / "train3.jpg").unlink()


def _size(root: Path) -> None:
    Image.new("RGB", (41, 30)).save(root / "train2017" / "train3.jpg")


def _text(root: Path) -> None:
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')


def _absent(root: Path) -> None:
    (root / "annotations" / "instances_val2017.json").unlink()


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (_cut, r"train3\.jpg: not a readable image \(image file is truncated"),
        (_gone, r"train2017: 1 of the 6 images of instances_train2017\.json are not there, first train3\.jpg"),
        (_size, r"train3\.jpg: 41 x 30 pixels, but instances_train2017\.json says 40 x 30"),
        (_text, r"instances_train2017\.json: no whole JSON"),
        (_absent, r"there is no 'instances_val2017\.json'.*did you mean 'instances_train2017\.json'"),
    ],
)
def test_harmed_files_are_one_line(tmp_path, harm: Callable[[Path], None], line):
    root = tiny.coco(tmp_path)
    harm(root)
    with pytest.raises(KDBenchError, match=line) as caught:
        opened(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "change", "line"),
    [
        (
            "annotations",
            lambda e: box(e, 2, image_id=999),
            "1 annotations are of no image .* annotation 2 of image 999",
        ),
        ("annotations", lambda e: box(e, 2, category_id=4), "are of no category .* annotation 2 of category 4"),
        ("annotations", lambda e: box(e, 2, bbox=[1, 2, 3]), "annotation 2 has the bbox .*expected four numbers"),
        ("annotations", lambda e: box(e, 2, bbox=[1, 2, float("nan"), 3]), "annotation 2 has the bbox"),
        ("images", lambda e: [*e, e[0]], "two images have the id 3"),
        ("images", lambda e: [{"id": 1}], "an image without a proper 'file_name'"),
        ("images", lambda e: [], "no images"),
        ("categories", lambda e: [e[0], e[0]], "two categories have one id or one name"),
        ("categories", lambda e: {}, "no list 'categories'"),
    ],
)
def test_wrong_annotations_are_one_line(tmp_path, key, change, line):
    root = tiny.coco(tmp_path, **{key: change})
    with pytest.raises(KDBenchError, match=line):
        opened(root)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"classes": ["cats"]}, "has no category 'cats': did you mean 'cat'"),
        ({"files": {"val": ("a", "b")}}, "data.files.val: expected train or test"),
        ({"train": 1}, "1 image to train on"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, options, line):
    root = tiny.coco(tmp_path)
    with pytest.raises(KDBenchError, match=line):
        opened(root, **options)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(KDBenchError, match="there is no such folder; expected COCO's layout"):
        opened(tmp_path / "nowhere")
