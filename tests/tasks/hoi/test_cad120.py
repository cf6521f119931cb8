"""The converter of CAD-120's released segment features."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.hoi import cad120
from tasks.hoi.layout import CLIP, HUMAN, OBJECT
from tasks.hoi.sources import open_source
from tests.tasks.hoi import tiny


def test_every_value_finds_its_place(tmp_path):
    held = tiny.released()
    meta, folds, videos = cad120.convert(tiny.write_released(tmp_path))
    assert [fold.name for fold in folds] == [f"subject {n}" for n in (1, 3, 4, 5)]
    for fold, person in zip(folds, (1, 3, 4, 5), strict=True):
        assert fold.test == tuple(f"{i:010d}" for i in range(8) if (1, 3, 4, 5)[i % 4] == person)
        assert {*fold.train} == {*meta.videos} - {*fold.test}
    for row, video in enumerate(videos.values()):
        steps, count = int(held["seg_mask"][row].sum()), int(held["obj_mask"][row, 0].sum())
        assert (video.steps, video.objects) == (steps, count)
        assert np.allclose(video.human[:, 0, :63], held["node_h"][row, :steps] / 10, atol=1e-3)
        assert not video.human[0, 0, 63:].any()  # nothing comes before the first segment
        assert np.allclose(video.human[1:, 0, 63:79], held["temp_h"][row, 1:steps] / 10, atol=1e-3)
        assert (video.human[1:, 0, 79] == 1).all()
        assert np.allclose(video.object[..., :18], held["node_o"][row, :steps, :count] / 10, atol=1e-3)
        for n in range(count):
            of_body = held["edge_ho"][row, :steps, n] / 10
            assert np.allclose(video.edge[:, 0, 1 + n, :40], of_body, atol=1e-3)
            assert np.allclose(video.edge[:, 1 + n, 0, :40], of_body, atol=1e-3)
            for other in {*range(count)} - {n}:
                assert np.allclose(
                    video.edge[:, 1 + n, 1 + other, 40:], held["edge_oo"][row, :steps, n, other] / 10, atol=1e-3
                )
        assert (video.human_label[:, 0] == held["y_sub"][row, :steps]).all()
        assert (video.object_label == held["y_aff"][row, :steps, :count]).all()
        assert video.clip_label.argmax() == held["activity"][row]
        assert (video.time[:, 1] - video.time[:, 0] == 9).all()
    assert len(meta.classes[HUMAN]) == len(meta.classes[CLIP]) == 10
    assert len(meta.classes[OBJECT]) == 12


def test_it_is_converted_once_and_nothing_is_written_beside_it(tmp_path):
    root, store = tiny.write_released(tmp_path / "cad"), Store(tmp_path / "cache")
    first = open_source("cad120", str(root), store, {})
    assert [path.name for path in root.iterdir()] == ["cad120_segments.npz"]
    made = list((tmp_path / "cache" / "hoi-cad120").glob("*/data/meta.json"))
    assert len(made) == 1
    stamp = made[0].stat().st_mtime_ns
    assert open_source("cad120", str(root), store, {}).digest == first.digest
    assert made[0].stat().st_mtime_ns == stamp
    assert not first.embedded


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"y_sub": np.full((8, 5), 11, np.int8)}, "human_label holds 11 to 11, expected 0 to 9 for the 10 classes"),
        ({"subject": np.ones(7, np.int8)}, "subject holds 7 videos and video_id 8"),
        ({"node_h": np.zeros((8, 5, 60), np.uint8)}, "node_h has 60 values, expected 63"),
        ({"y_aff": np.zeros((8, 4, 3), np.int8)}, "y_aff holds 4 segments and seg_mask 5"),
        ({"activity": np.full(8, 10, np.int8)}, "activity holds 10, expected a row of activity_names"),
        ({"obj_mask": np.zeros((8, 5, 3), bool)}, "has no objects, expected one at least"),
        ({"seg_mask": np.arange(5) < np.ones((8, 1))}, "has one step, expected two at least"),
        ({"node_h": np.array([{}], dtype=object)}, "holds pickled objects, which are not read"),
    ],
)
def test_files_that_are_wrong_are_one_line(tmp_path, changes, line):
    root = tiny.write_released(tmp_path / "cad", **changes)
    with pytest.raises(KDBenchError, match=line) as found:
        open_source("cad120", str(root), Store(tmp_path / "cache"), {})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "root", "kitchen", "line"),
    [
        ("cad12", None, {}, "data.source=cad12: there is no such source: did you mean 'cad120'"),
        ("cad120", None, {}, "data.root: cad120 is not embedded; set the folder that holds cad120_segments.npz"),
        ("cad120", "/nonexistent", {}, "there is no such folder; expected one that holds cad120_segments.npz"),
        ("cad120", ".", {}, "there is no 'cad120_segments.npz' in"),
        ("kitchen", ".", {}, "kitchen is made up and reads no files; choose data=cad120 or another of files"),
        ("graphs", ".", {"videos": 3}, "data.kitchen={'videos': 3}: graphs is not made up"),
        ("kitchen", None, {"vidoes": 3}, "data.kitchen.vidoes: unknown key: did you mean 'videos'"),
    ],
)
def test_sources_that_do_not_fit_are_one_line(tmp_path, monkeypatch, name, root, kitchen, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDBenchError, match=line):
        open_source(name, root, Store(tmp_path / "cache"), kitchen)


def test_the_released_set(shared_data, tmp_path):
    root = shared_data / "hoi" / "cad120_koppula"
    if not root.is_dir():
        pytest.skip("needs the released segment features of CAD-120")
    layout = open_source("cad120", str(root), Store(tmp_path), {})
    assert len(layout.videos) == 125
    assert sum(video.steps for video in layout.videos.values()) == 1194
    labels = np.concatenate([video.human_label.ravel() for video in layout.videos.values()])
    assert np.bincount(labels).tolist() == [283, 356, 32, 39, 32, 53, 185, 37, 165, 12]
    used = np.concatenate([video.object_label[video.mask[:, 1:]] for video in layout.videos.values()])
    assert np.bincount(used).tolist() == [285, 1760, 278, 32, 32, 25, 32, 53, 187, 37, 12, 12]
    assert [len(fold.test) for fold in layout.folds] == [31, 31, 31, 32]
