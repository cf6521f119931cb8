"""The converter of the Bimanual Actions Dataset, on recordings made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from tasks.hoi import bimanual
from tasks.hoi.layout import HUMAN, UNKNOWN
from tasks.hoi.sources import open_source

Frames = list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]


def thing(name: str, kind: str, at: float, past: float | None = None) -> dict[str, Any]:
    """An object: a cube of 2 around ``at`` on each axis, which was at ``past`` a frame before."""

    def box(middle: float) -> dict[str, float]:
        return {f"{axis}{end}": middle + side for axis in "xyz" for end, side in ((0, -1.0), (1, 1.0))}

    boxes = {"bounding_box": box(at), "past_bounding_box": box(at if past is None else past)}
    return {"instance_name": name, "class_name": kind, "class_index": 0, "certainty": 1.0, **boxes}


def recording(frames: int = 25) -> Frames:
    """Both hands and a cup, which is not seen in frames 10 to 19; the right hand is over it."""
    found: Frames = []
    for number in range(frames):
        hands = [thing("RightHand", "RightHand", 5.0, 4.0), thing("LeftHand", "LeftHand", float(number))]
        cups = [] if 10 <= number < 20 else [thing("cup_1", "cup", 2.0)]
        over = [{"subject_index": 0, "object_index": 2, "relation_name": "above"}] if cups else []
        found.append(([*hands, *cups], over))
    return found


TRUTH = {"left_hand": [0, 0, 5, None, 15, 3, 24], "right_hand": [0, 6, 24]}


def tree(root: Path, subjects: tuple[int, ...] = (1, 2), frames: Frames | None = None, truth: Any = None) -> Path:
    """A take of each subject."""
    for subject in subjects:
        take = Path(f"subject_{subject}") / "task_1_k_cooking" / "take_0"
        parts = [root / bimanual.DERIVED / take / part for part in ("3d_objects", "spatial_relations")]
        for folder, place in zip(parts, (0, 1), strict=True):
            folder.mkdir(parents=True)
            for number, frame in enumerate(frames or recording()):
                (folder / f"frame_{number}.json").write_text(json.dumps(frame[place]))
        actions = root / bimanual.TRUTH / take.with_suffix(".json")
        actions.parent.mkdir(parents=True)
        actions.write_text(json.dumps(TRUTH if truth is None else truth))
    return root


def test_every_value_finds_its_place(tmp_path):
    layout = open_source("bimanual", str(tree(tmp_path / "data", (1, 2, 10))), Store(tmp_path / "cache"), {})
    assert [fold.name for fold in layout.folds] == ["subject_1", "subject_2", "subject_10"]
    assert [fold.test for fold in layout.folds] == [(f"subject_{n}_task_1_k_cooking_take_0",) for n in (1, 2, 10)]
    assert layout.meta.categories == ("unknown", "cup")
    assert layout.meta.rate == 3.0
    video = layout.videos["subject_1_task_1_k_cooking_take_0"]
    assert layout.meta.videos["subject_1_task_1_k_cooking_take_0"]["activity"] == "task_1_k_cooking"
    assert video.time.tolist() == [[0, 9], [10, 19], [20, 29]]
    assert video.human.shape == (3, 2, 9)
    assert video.human[:, 0, 0].tolist() == [0, 10, 20]  # the left hand is first
    assert video.human[0, 1].tolist() == [5, 5, 5, 2, 2, 2, 1, 1, 1]
    assert video.mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    above = bimanual.RELATIONS.index("above")
    assert video.edge[:, 1, 2, above].tolist() == [1, 0, 1]
    assert not video.edge[:, 2, 1, above].any()
    assert video.edge[0, 1, 2, -4:].astype(float) == pytest.approx([-3, -3, -3, 27**0.5], rel=1e-3)
    assert not video.edge[1, 2].any()
    names = [layout.meta.classes[HUMAN][n] if n != UNKNOWN else None for n in video.human_label[:, 0]]
    assert names == ["idle", None, "lift"]
    assert video.human_label[:, 1].tolist() == [6, 6, 6]
    assert (video.object_label == UNKNOWN).all()


def test_the_last_frame_belongs_to_the_last_action(tmp_path):
    truth = {"left_hand": [0, 1, 20], "right_hand": [0, 2, 10]}
    _, _, videos = bimanual.convert(tree(tmp_path, (1,), truth=truth))
    (video,) = videos.values()
    assert video.human_label.tolist() == [[1, 2], [1, 2], [1, UNKNOWN]]


def broken(change: Callable[[list[Any], list[Any]], object]) -> Frames:
    frames = recording()
    change(*frames[10])
    return frames


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"truth": {"left_hand": [0, 14, 24], "right_hand": [0, 0, 24]}}, "the action 14, expected 0 to 13"),
        ({"truth": {"left_hand": [0, 1], "right_hand": [0, 0, 24]}}, "left_hand is no list of frames and actions"),
        ({"truth": []}, "left_hand is no list of frames"),
        ({"frames": broken(lambda o, r: o[0].pop("bounding_box"))}, "frame_10.json: is not .* lacks 'bounding_box'"),
        ({"frames": broken(lambda o, r: r.append({"subject_index": 0, "object_index": 9, "relation_name": "above"}))},
         "frame_10.json: is not a list of what is in a frame: list index out of range"),
        ({"frames": broken(lambda o, r: r.append({"subject_index": 0, "object_index": 1, "relation_name": "abov"}))},
         "there is no relation 'abov': did you mean 'above'"),
        ({"frames": [([thing("LeftHand", "LeftHand", 1.0)], [])] * 25}, "has no objects, expected one at least"),
        ({"frames": recording(9), "truth": TRUTH}, "has one step, expected two at least"),
        ({"frames": [([thing("cup", "cup", 1.0)], [])] * 25}, "person 0 is never there"),
        ({"frames": [(o + [thing("jar", "jar", float("nan"))], r) for o, r in recording()]}, "object 1 is never there"),
    ],
)  # fmt: skip
def test_what_is_not_as_released_is_one_line(tmp_path, given, line):
    with pytest.raises(KDBenchError, match=line) as raised:
        open_source("bimanual", str(tree(tmp_path / "data", **given)), Store(tmp_path / "cache"), {})
    assert "\n" not in str(raised.value)


def test_files_that_are_missing_are_named(tmp_path):
    with pytest.raises(KDBenchError, match="expected <subject>/<task>/<take>/3d_objects below it"):
        bimanual.files(tmp_path)
    root = tree(tmp_path / "data", (1,))
    first = (
        root / bimanual.DERIVED / "subject_1" / "task_1_k_cooking" / "take_0" / "spatial_relations" / "frame_10.json"
    )
    first.write_text("{")
    with pytest.raises(KDBenchError, match="frame_10.json: is no JSON"):
        bimanual.convert(root)
    first.unlink()
    with pytest.raises(KDBenchError, match="expected a file for each frame"):
        bimanual.convert(root)
    (root / bimanual.TRUTH / "subject_1" / "task_1_k_cooking" / "take_0.json").unlink()
    with pytest.raises(KDBenchError, match="expected the actions of both hands"):
        bimanual.files(root)


def test_nothing_is_written_beside_the_data(tmp_path):
    root = tree(tmp_path / "data")
    before = sorted(root.rglob("*"))
    assert len(bimanual.files(root)) == 2 * (1 + 3 + 3)
    open_source("bimanual", str(root), Store(tmp_path / "cache"), {})
    assert sorted(root.rglob("*")) == before
    assert np.array_equal(bimanual._labels(bimanual.takes(root)[0][2], "left_hand", np.array([24, 25])), [3, UNKNOWN])
