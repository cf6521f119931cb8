"""The layout: what is written is read back, and what is wrong with it is one line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kdbench.errors import KDBenchError
from tasks.hoi.batches import Scale
from tasks.hoi.layout import DTYPES, Fold, check, read
from tests.tasks.hoi import tiny


def test_what_is_written_is_read_back(tmp_path):
    given = {f"v{i}": tiny.video(i, steps=3 + i, objects=1 + i) for i in range(4)}
    found = read(tiny.folder(tmp_path / "data", given))
    assert found.videos.keys() == given.keys()
    assert [found.videos[name].digest() for name in given] == [video.digest() for video in given.values()]
    assert found.meta == tiny.meta(4)
    assert [fold.name for fold in found.folds] == ["without a", "without b"]
    assert found.digest == read(tiny.folder(tmp_path / "again", given)).digest
    given["v0"] = replace(given["v0"], human_label=(given["v0"].human_label + 1) % 3)
    assert found.digest != read(tiny.folder(tmp_path / "other", given)).digest


def test_mean_and_spread_of_the_first_fold_stand_beside_them(tmp_path):
    root = tiny.folder(tmp_path / "data")
    layout, told = read(root), json.loads((root / "stats.json").read_text())
    fold = layout.folds[0]
    assert told["fold"] == fold.name
    videos = [layout.videos[name] for name in fold.train]
    values = np.concatenate([video.object.reshape(-1, 3) for video in videos]).astype(float)
    for i, name in enumerate("cde"):
        assert np.allclose(told["mean_std"]["object"][name], [values[:, i].mean(), values[:, i].std()], atol=1e-5)
    scale = Scale.of(videos, categories=2)
    assert {**scale.mean} == {kind: [mean for mean, _ in own.values()] for kind, own in told["mean_std"].items()}


def nan_track(video):
    values = video.object.copy()
    values[:, 1] = np.nan
    return replace(video, object=values)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (nan_track, r"video v: object 1 is never there \(all of its track is absent or NaN\): leave it out"),
        (
            lambda v: replace(v, mask=v.mask & (np.arange(3) != 0)),
            r"video v: person 0 is never there",
        ),
        (lambda v: tiny.video(objects=0), "video v: has no objects, expected one at least: leave the video out"),
        (lambda v: tiny.video(steps=1), "video v: has one step, expected two at least: leave the video out"),
        (
            lambda v: replace(v, human_label=v.human_label + 3),
            "video v: human_label holds 3 to 5, expected 0 to 2 for the 3 classes of meta.json, or -1 for none",
        ),
        (
            lambda v: replace(v, object_label=v.object_label - 2),
            "video v: object_label holds -2 to -1, expected 0 to 1 for the 2 classes of meta.json, or -1 for none",
        ),
        (
            lambda v: replace(v, human_label=v.human_label[:-1]),
            r"video v: human_label has the shape \(5, 1\), expected \(6, 1\) for 6 steps, 1 people and 2 objects",
        ),
        (
            lambda v: replace(v, edge=v.edge[:, :2]),
            r"video v: edge has the shape \(6, 2, 3, 1\), expected \(6, 3, 3, 1\) for 6 steps",
        ),
        (
            lambda v: replace(v, human=np.where(np.arange(6)[:, None, None] == 2, np.inf, v.human)),
            "video v: node 0 has a value that is no number at step 2: mask it there",
        ),
        (
            lambda v: replace(v, edge=v.edge + np.float16("nan")),
            "video v: edge holds a value that is no number between nodes that are there",
        ),
        (
            lambda v: replace(v, category=np.array([0, 2], np.uint8)),
            "video v: category holds 2, expected 0 to 1 for the categories of meta.json",
        ),
    ],
)
def test_a_video_that_is_wrong_is_one_line(change, line):
    check("v", tiny.video(), tiny.meta())
    with pytest.raises(KDBenchError, match=line) as found:
        check("v", change(tiny.video()), tiny.meta())
    assert "\n" not in str(found.value)


def test_values_of_what_is_absent_are_not_looked_at():
    video = tiny.video()
    mask, values = video.mask.copy(), video.object.copy()
    mask[2, 1], values[2, 0] = False, np.nan
    check("v", replace(video, mask=mask, object=values), tiny.meta())


def test_pickled_archives_are_refused(tmp_path):
    root = tiny.folder(tmp_path / "data")
    held = dict(np.load(root / "videos" / "v1.npz"))
    held["human"] = np.array([{"a": 1}], dtype=object)
    np.savez(root / "videos" / "v1.npz", **held)
    with pytest.raises(KDBenchError, match=r"v1\.npz: holds pickled objects, which are not read as they can run code"):
        read(root)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is no .npz archive of arrays"),
        (b"PK\x03\x04 broken", "is no .npz archive of arrays"),
        (None, "there is no 'v1.npz' in .*meta.json names this video"),
    ],
)
def test_a_broken_archive_is_one_line(tmp_path, content, line):
    file = tiny.folder(tmp_path / "data") / "videos" / "v1.npz"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(KDBenchError, match=line):
        read(tmp_path / "data")


def test_a_missing_array_is_one_line(tmp_path):
    root = tiny.folder(tmp_path / "data")
    held = dict(np.load(root / "videos" / "v1.npz"))
    del held["mask"]
    np.savez(root / "videos" / "v1.npz", **held)
    with pytest.raises(KDBenchError, match=f"there is no array 'mask', expected {', '.join(DTYPES)}"):
        read(root)


@pytest.mark.parametrize(
    ("fold", "line"),
    [
        (Fold("f", ("v0", "v1"), ("v2",)), "fold 'f': subject 'a' is in training and in test, which leaks"),
        (Fold("f", ("v1",), ("v0",), ("v2",)), "fold 'f': subject 'a' is in training and in test"),
        (Fold("f", ("v1",), ("v9",)), "fold 'f': test names the video 'v9', which meta.json does not"),
        (Fold("f", (), ("v0",)), "fold 'f': train is empty, expected videos"),
    ],
)
def test_folds_that_leak_or_lack_are_refused(tmp_path, fold, line):
    with pytest.raises(KDBenchError, match=line):
        read(tiny.folder(tmp_path / "data", folds=[fold]))


def test_meta_that_is_wrong_is_one_line(tmp_path):
    root = tiny.folder(tmp_path / "data")
    held = json.loads((root / "meta.json").read_text())
    (root / "meta.json").write_text(json.dumps({**held, "schema": 2}))
    with pytest.raises(KDBenchError, match="meta.json: schema 2, expected 1"):
        read(root)
    del held["mode"]
    (root / "meta.json").write_text(json.dumps(held))
    with pytest.raises(KDBenchError, match="meta.json: mode: field required"):
        read(root)
    (root / "meta.json").unlink()
    with pytest.raises(KDBenchError, match="expected a folder with meta.json, splits.json and videos/"):
        read(root)
