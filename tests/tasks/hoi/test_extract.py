"""Graphs out of videos: a detector that has learned the embedded scenes, cameras that move over them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.runs import deployment
from kdbench.task import Batch
from tasks.detection.data import collate
from tasks.detection.task import Detection
from tasks.hoi import extract
from tasks.hoi.boxes import BOX, EDGE, overlap
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN, Fold, read
from tests.tasks.detection import tiny as detection

STEPS, WIDTH = 10, 16
OPTIONS = extract.Options(score=0.2, objects=3)


def the_batch(task: Detection) -> Batch:
    """All that the detector learns: a scene with a person and something else."""
    batch: Batch = next(iter(task.data(0).train_dataloader()))
    person = task.preprocess.classes.index("person")
    row = next(i for i, target in enumerate(batch.targets) if {person} < {*target.labels.tolist()})
    return collate([batch.inputs.images[row]], [batch.targets[row]], batch.ids[row : row + 1])


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> tuple[Detection, nn.Module]:
    """A small RetinaNet that has learned a rendered scene by heart, wherever the camera stands."""
    near = {"size": detection.SIZE, "train": 10, "test": 3, "zoom": 10.0}
    given = {"transforms": {"flip": False}, "batch_size": 9, "render": near}
    task = detection.task(tmp_path_factory.mktemp("cache"), given)
    batch = the_batch(task)
    with rng.scope(0, "detector"):
        model = task.build(detection.RETINANET).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for step in range(150):
            seen = moved(batch, 3 * step % STEPS)
            loss = sum(task.loss(model, task.forward(model, seen.inputs), seen).values())
            optimizer.zero_grad()
            torch.as_tensor(loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
    return task, model.eval()


@pytest.fixture(scope="module")
def scene(detector) -> tuple[np.ndarray, np.ndarray]:
    """The scene, ``(H, W, 3)``, and the boxes of its people."""
    task, _ = detector
    batch = the_batch(task)
    target = batch.targets[0]
    people = target.boxes[target.labels == task.preprocess.classes.index("person")]
    return batch.inputs.images[0].permute(1, 2, 0).numpy(), people.numpy()


def moved(batch: Batch, by: int) -> Batch:
    """A camera that has moved to the right by so many pixels; what it has left behind comes back without a box."""
    shift = torch.tensor([by, 0.0, by, 0.0])
    targets = []
    for target in batch.targets:
        there = target.boxes[:, 0] >= by
        targets.append(target._replace(boxes=target.boxes[there] - shift, labels=target.labels[there]))
    inputs = batch.inputs._replace(images=batch.inputs.images.roll(-by, 3))
    return replace(batch, inputs=inputs, targets=targets)


def film(folder: Path, image: np.ndarray, steps: int = STEPS) -> Path:
    """Writes a camera that moves to the right by a pixel a frame."""
    folder.mkdir(parents=True)
    for step in range(steps):
        Image.fromarray(np.roll(image, -step, axis=1)).save(folder / f"{step:03d}.png")
    return folder


@pytest.mark.slow
def test_a_video_of_the_embedded_scenes_becomes_a_graph(detector, scene, tmp_path):
    task, model = detector
    image, people = scene
    out = tmp_path / "out"
    extract.write(out, *extract.extract(task, model, [film(tmp_path / "walk", image)], OPTIONS))
    layout = read(out)
    video = layout.videos["walk"]
    assert video.steps == STEPS
    assert video.human.shape == (STEPS, 1, WIDTH + len(BOX) + 1)
    assert 1 <= video.objects <= OPTIONS.objects
    assert layout.meta.features["edge"] == EDGE
    assert (video.human_label == UNKNOWN).all()
    assert {layout.meta.categories[c] for c in video.category} <= {*task.preprocess.classes} - {"person"}
    assert layout.folds == ()
    assert json.loads((out / "stats.json").read_text())["fold"] is None
    # The person is one of the scene's, and its box moves as the camera does.
    there = video.mask[:, 0]
    assert there.sum() >= STEPS // 2
    boxes = video.human[:, 0, WIDTH : WIDTH + 4].astype(float) * [96, 64, 96, 64]
    shift = np.array([1.0, 0, 1, 0]) * np.arange(STEPS)[:, None]
    best = overlap((boxes + shift)[:, None], people[None].astype(float)).max(1)
    assert best[there].mean() > 0.5


@pytest.mark.slow
def test_a_video_file_is_read_as_its_frames_are(detector, scene, tmp_path):
    cv2 = pytest.importorskip("cv2")
    image, _ = scene
    path = tmp_path / "walk.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for step in range(STEPS):
        video.write(np.ascontiguousarray(np.roll(image, -step, axis=1)[:, :, ::-1]))
    video.release()
    found = list(extract.frames(path, (), 3))
    assert [number for number, _ in found] == [0, 3, 6, 9]
    for number, frame in found:
        assert np.abs(np.asarray(frame, float) - np.roll(image, -number, axis=1)).mean() < 12  # of a lossy codec


def test_pooled_features_are_those_of_the_maps_within_the_box():
    maps = (torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6))
    maps[0][0, 0, 1:6, 5:10] = 5.0
    found = extract._pooled(maps, [torch.tensor([[50.0, 18.0, 62.0, 30.0], [0.0, 40.0, 16.0, 56.0]])], (64, 96))
    torch.testing.assert_close(found, torch.tensor([[5.0], [0.0]]))


def made(frames: list[list[tuple[float, int, float]]]) -> extract.Seen:
    """What a detector says: of each frame the left side, the class and the score of boxes of a fifth of it."""
    boxes = [np.array([[x, 0.2, x + 0.2, 0.4] for x, _, _ in own]).reshape(-1, 4) for own in frames]
    return extract.Seen(
        np.arange(len(frames), dtype=np.int32) * 2,
        boxes,
        [np.array([kind for _, kind, _ in own], np.int64) for own in frames],
        [np.array([score for _, _, score in own]) for own in frames],
        [np.full((len(own), 3), 7.0) for own in frames],
    )


PERSON, CUP = 0, 1


def test_nodes_are_the_tracks_that_are_seen_longest():
    seen = made(
        [
            [(0.0, PERSON, 0.9), (0.4, CUP, 0.9), (0.8, CUP, 0.3)],
            [(0.05, PERSON, 0.9), (0.6, PERSON, 0.95), (0.4, CUP, 0.9)],
            [(0.1, PERSON, 0.9), (0.4, CUP, 0.9)],
        ]
    )
    video = extract.graph("video v", seen, PERSON, extract.Options(objects=1))
    assert video.mask.tolist() == [[True, True]] * 3
    assert np.allclose(video.human[:, 0, 3], [0.0, 0.05, 0.1], atol=1e-3)
    assert video.category.tolist() == [CUP + 1]
    assert video.time.tolist() == [[0, 0], [2, 2], [4, 4]]
    both = extract.graph("video v", seen, PERSON, extract.Options(people=2))
    assert both.mask.tolist() == [[1, 0, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0]]


def test_labels_find_their_steps():
    seen = made([[(0.0, PERSON, 0.9), (0.4, CUP, 0.9)]] * 4)
    video = extract.graph("video v", seen, PERSON, extract.Options())
    classes = {HUMAN: ("pour", "wait"), OBJECT: (), CLIP: ("tea", "work")}
    label = extract.Label("anna", "tea", [[(0, 3, "wait"), (4, 4, "pour")]], ["tea"])
    found = extract.labelled("v", video, label, classes)
    assert found.human_label[:, 0].tolist() == [1, 1, 0, UNKNOWN]
    assert found.clip_label.tolist() == [1, 0]
    with pytest.raises(KDBenchError, match="video v: labels of 2 people, expected 1 at most"):
        extract.labelled("v", video, replace(label, people=[[], []]), classes)


class Stub:
    """What stands for a task whose detector says what it is told."""

    suffixes = (".png",)
    preprocess = SimpleNamespace(classes=("person", "cup"), name="stub")


@pytest.fixture
def told(monkeypatch) -> None:
    seen = made([[(0.0, PERSON, 0.9), (0.4, CUP, 0.9)]] * 3)
    monkeypatch.setattr(extract, "detect", lambda *_: seen)


def run(tmp_path: Path, labels: Any = None, names: tuple[str, ...] = ("a", "b"), **options: Any) -> Any:
    folders = [tmp_path / name for name in names]
    path = None
    if labels is not None:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(labels))
    return extract.extract(Stub(), nn.Identity(), folders, extract.Options(**options), path)  # type: ignore[arg-type]


def test_every_subject_is_held_out_once(told, tmp_path):
    labels = {n: {"subject": who, "people": [[[0, 4, "wait"]]]} for n, who in zip("abc", ("x", "y", "x"), strict=True)}
    meta, folds, videos = run(tmp_path, labels, ("a", "b", "c"))
    assert folds == [Fold("subject x", ("b",), ("a", "c")), Fold("subject y", ("a", "c"), ("b",))]
    assert meta.classes == {HUMAN: ("wait",), OBJECT: (), CLIP: ()}
    assert (videos["a"].human_label == 0).all()
    extract.write(tmp_path / "out", meta, folds, videos)
    assert read(tmp_path / "out").folds == tuple(folds)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"person": "persn"}, "--person persn: the detector knows no such class: did you mean 'person'"),
        ({"names": ("a", "sub/a")}, "two inputs are named 'a': rename one"),
        ({"labels": {"a": {"subject": "x"}}}, "there are no labels of the video 'b'"),
        ({"labels": {"a": {}}}, "labels.json: a.subject: "),
        ({"people": 2}, "video a: 1 people were found, expected 2: lower --score"),
        ({"every": 0}, "--every 0: expected a number from 1 on"),
    ],
)
def test_what_does_not_fit_is_one_line(told, tmp_path, given, line):
    with pytest.raises(KDBenchError, match=line) as found:
        run(tmp_path, **given)
    assert "\n" not in str(found.value)


def test_the_command_writes_a_folder_once(told, tmp_path, monkeypatch, capsys):
    left = SimpleNamespace(
        task=detection.shaped(),
        record=SimpleNamespace(task="detection"),
        artifact=lambda: SimpleNamespace(module=nn.Identity()),
    )
    monkeypatch.setattr(deployment, "read_run", lambda _: left)
    asked = [str(tmp_path / "a"), "--detector", "run", "--out", str(tmp_path / "out")]
    assert extract.main(asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"video": "a", "steps": 3, "objects": ["car"], "seen": [1.0, 1.0]}
    assert [*read(tmp_path / "out").videos] == ["a"]
    assert extract.main(asked) == 1
    assert "is there already; choose another folder" in capsys.readouterr().err
    left.task = Stub()
    assert extract.main([*asked[:-1], str(tmp_path / "other")]) == 1
    assert "expected one of detection" in capsys.readouterr().err


def test_inputs_that_hold_no_frame_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KDBenchError, match=r"empty: this folder holds no frame; expected \.png"):
        list(extract.frames(tmp_path / "empty", (".png",), 1))
    with pytest.raises(KDBenchError, match="expected a video, or a folder of its frames"):
        list(extract.frames(tmp_path / "missing.mp4", (), 1))
    pytest.importorskip("cv2")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(KDBenchError, match="OpenCV reads no frame of it"):
        list(extract.frames(tmp_path / "text.mp4", (), 1))
