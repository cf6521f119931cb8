"""Graphs of people and objects out of videos: ``python -m tasks.hoi.extract INPUT… --detector RUN --out DIR``.

An input is a video, or a folder of its frames as images. The detector of a recorded run of ``task=detection`` finds
people and objects in every sampled frame, :mod:`tasks.hoi.tracks` says who is who, and the features of a node are what
the detector's pyramid holds within its box, pooled by RoIAlign, beside the box itself. What is written is the layout of
:mod:`tasks.hoi.layout`, which ``data=graphs`` reads. ``--labels FILE`` says who acts and what happens; without it the
videos have no labels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from kdbench.errors import KDBenchError, absent, nearest, printable, reading
from tasks.hoi.boxes import BOX, EDGE, edges
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN, Fold, Meta, Video, write
from tasks.hoi.tracks import follow

if TYPE_CHECKING:
    from tasks.detection.task import Detection

#: Frames that the detector reads at once.
BATCH = 8

Frame = tuple[int, Image.Image]


@dataclass(frozen=True)
class Options:
    """How videos become graphs.

    Attributes:
        person: Which class of the detector is a person.
        people: How many every video has.
        objects: Most objects of a video: those that are seen longest and surest.
        every: Reads each so-manieth frame.
        score: Least score of a detection.
    """

    person: str = "person"
    people: int = 1
    objects: int = 5
    every: int = 1
    score: float = 0.3

    def __post_init__(self) -> None:
        for name in ("people", "objects", "every"):
            if getattr(self, name) < 1:
                raise KDBenchError(f"--{name} {getattr(self, name)}: expected a number from 1 on")


@dataclass(frozen=True)
class Label:
    """What is known of a video.

    Attributes:
        subject: Who acts; nobody is in training and in test.
        activity: What the video shows.
        people: Of each person, the one seen most first, runs of one class: first and last frame, and its name.
        clip: Labels of the whole video.
    """

    subject: str
    activity: str = ""
    people: list[list[tuple[int, int, str]]] = field(default_factory=list)
    clip: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What was found in the frames of a video.

    Attributes:
        numbers: ``(T,)`` of the frames.
        boxes: Of each frame ``(N, 4)``, shares of its width and height.
        labels: Of each frame ``(N,)`` classes.
        scores: Of each frame ``(N,)``.
        features: Of each frame ``(N, C)``.
    """

    numbers: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    scores: list[np.ndarray]
    features: list[np.ndarray]


def frames(path: Path, suffixes: Sequence[str], every: int) -> Iterator[Frame]:
    """Reads the frames of a video, or the images of a folder in the order of their names, RGB.

    Raises:
        KDBenchError: There is nothing to read, or what reads videos is missing.
    """
    if path.is_dir():
        from tasks.images import Reader

        files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        if not files:
            raise KDBenchError(f"{printable(path)}: this folder holds no frame; expected {', '.join(suffixes)}")
        yield from ((i, Reader().decode(files[i], 3)) for i in range(0, len(files), every))
        return
    if not path.is_file():
        raise KDBenchError(f"{absent(path)}; expected a video, or a folder of its frames")
    try:
        import cv2
    except ImportError:
        raise KDBenchError(
            f"{printable(path)}: reading videos needs OpenCV: pip install opencv-python-headless, or give a folder of "
            "the frames"
        ) from None
    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while video.grab():
            if number % every == 0:
                read, image = video.retrieve()
                if not read:
                    break
                yield number, Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
            number += 1
        if not number:
            raise KDBenchError(f"{printable(path)}: OpenCV reads no frame of it; expected a video")
    finally:
        video.release()


@torch.no_grad()
def detect(task: Detection, model: nn.Module, given: Iterator[Frame], score: float) -> Seen:
    """Finds people and objects in frames of one size, with their features.

    Args:
        task: Which the detector is of.
        model: The detector.
        given: Frames.
        score: Least score of a detection.
    """
    from tasks.detection.task import adapter

    numbers: list[int] = []
    boxes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    features: list[np.ndarray] = []
    while chunk := list(islice(given, BATCH)):
        batch = task.batch([image for _, image in chunk])
        outputs = task.forward(model.eval(), batch.inputs)
        found = adapter(model).predict(model, outputs, batch.inputs)
        kept = [one.scores >= score for one in found]
        rows = [one.boxes[own] for one, own in zip(found, kept, strict=True)]
        pooled = _pooled(outputs.features, rows, tuple(batch.inputs.images.shape[2:])).split([len(own) for own in rows])
        numbers += [number for number, _ in chunk]
        for one, own, row, values, (tall, wide) in zip(found, kept, rows, pooled, batch.inputs.shapes(), strict=True):
            share = row / row.new_tensor([wide, tall, wide, tall])
            boxes.append(share.clamp(0, 1).cpu().numpy())
            labels.append(one.labels[own].cpu().numpy())
            scores.append(one.scores[own].cpu().numpy())
            features.append(values.cpu().numpy())
    return Seen(np.array(numbers, np.int32), boxes, labels, scores, features)


def _pooled(maps: Sequence[Tensor], boxes: list[Tensor], size: tuple[int, ...]) -> Tensor:
    """Returns the mean of a pyramid's map within each box, ``(N, C)``; larger boxes read coarser levels."""
    names = [str(level) for level in range(len(maps))]
    pool = MultiScaleRoIAlign(names, output_size=1, sampling_ratio=2)
    found: Tensor = pool(dict(zip(names, maps, strict=True)), boxes, [(size[0], size[1])] * len(boxes))
    return found.flatten(1)


def graph(where: str, seen: Seen, person: int, options: Options) -> Video:
    """Makes a video of what was found: the tracks that are seen longest and surest become its nodes.

    Args:
        where: Names the video in errors.
        seen: What was found.
        person: Which class is a person.
        options: How many nodes there are.

    Raises:
        KDBenchError: Too few people or no object, or fewer than two frames.
    """
    tracks = follow(seen.boxes, seen.labels)
    each = np.concatenate(tracks) if tracks else np.zeros(0, np.int64)
    weight = np.bincount(each, np.concatenate(seen.scores)) if len(each) else np.zeros(0)
    kind = np.zeros(len(weight), np.int64)
    kind[each] = np.concatenate(seen.labels) if len(each) else 0
    best = np.argsort(-weight, kind="stable")
    people = best[kind[best] == person][: options.people]
    things = best[kind[best] != person][: options.objects]
    if len(people) < options.people:
        raise KDBenchError(
            f"{where}: {len(people)} people were found, expected {options.people}: lower --score, or more frames"
        )
    if not len(things):
        raise KDBenchError(
            f"{where}: no object was found, expected one at least: lower --score, or leave the video out"
        )
    chosen = np.concatenate([people, things])
    steps, width = len(tracks), next(f.shape[1] for f in seen.features)
    boxes, mask = np.zeros((steps, len(chosen), 4)), np.zeros((steps, len(chosen)), bool)
    values = np.zeros((steps, len(chosen), width + len(BOX) + 1))
    place = np.full(len(weight), -1)
    place[chosen] = np.arange(len(chosen))
    for step, own in enumerate(tracks):
        rows = np.flatnonzero(place[own] >= 0)
        nodes = place[own[rows]]
        boxes[step, nodes], mask[step, nodes] = seen.boxes[step][rows], True
        told = [seen.features[step][rows], seen.boxes[step][rows], seen.scores[step][rows, None]]
        values[step, nodes] = np.concatenate(told, 1)
    count = len(people)
    return Video(
        human=values[:, :count].astype(np.float16),
        object=values[:, count:].astype(np.float16),
        edge=edges(boxes, mask).astype(np.float16),
        category=(kind[things] + 1).astype(np.uint8),
        mask=mask,
        human_label=np.full((steps, count), UNKNOWN, np.int16),
        object_label=np.full((steps, len(things)), UNKNOWN, np.int16),
        clip_label=np.zeros(0, np.uint8),
        time=np.stack([seen.numbers, seen.numbers], 1),
    )


def labelled(name: str, video: Video, label: Label, classes: Mapping[str, Sequence[str]]) -> Video:
    """Returns a video with its labels.

    Raises:
        KDBenchError: There are labels of more people than the video has.
    """
    if len(label.people) > video.human.shape[1]:
        raise KDBenchError(
            f"video {name}: labels of {len(label.people)} people, expected {video.human.shape[1]} at most"
        )
    labels = video.human_label.copy()
    for person, runs in enumerate(label.people):
        for first, last, said in runs:
            labels[(video.time[:, 0] >= first) & (video.time[:, 1] <= last), person] = classes[HUMAN].index(said)
    clip = np.array([said in label.clip for said in classes[CLIP]], np.uint8)
    fields = {key: getattr(video, key) for key in Video.__dataclass_fields__}
    return Video(**{**fields, "human_label": labels, "clip_label": clip})


def read_labels(path: Path, names: Sequence[str]) -> dict[str, Label]:
    """Reads a JSON object of :class:`Label` by the name of a video.

    Raises:
        KDBenchError: It is something else, or says nothing of a video.
    """
    with reading(path):
        if not path.is_file():
            raise KDBenchError(absent(path))
        text = path.read_bytes()
    try:
        found: dict[str, Label] = TypeAdapter(dict[str, Label]).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise KDBenchError(f"{printable(path)}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name in names:
        if name not in found:
            raise KDBenchError(f"{printable(path)}: there are no labels of the video {name!r}: {nearest(name, found)}")
    return found


def extract(
    task: Detection, model: nn.Module, inputs: Sequence[Path], options: Options, labels: Path | None = None
) -> tuple[Meta, list[Fold], dict[str, Video]]:
    """Makes the graphs of videos.

    Args:
        task: Which the detector is of.
        model: The detector.
        inputs: Videos, or folders of frames; their names without endings name the videos.
        options: How.
        labels: File of :func:`read_labels`; without it every video is of somebody else.

    Returns:
        What :func:`tasks.hoi.layout.write` takes; each subject is the test of one fold, where there are two.

    Raises:
        KDBenchError: Two inputs of one name, a class that the detector does not know, or a video that yields no graph.
    """
    known = task.preprocess.classes
    if options.person not in known:
        raise KDBenchError(
            f"--person {options.person}: the detector knows no such class: {nearest(options.person, known)}"
        )
    names = [path.stem if path.is_file() else path.absolute().name for path in inputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise KDBenchError(f"two inputs are named {twice!r}: rename one, as their names name the videos")
    said = {name: Label(name) for name in names} if labels is None else read_labels(labels, names)
    videos = {}
    for name, path in zip(names, inputs, strict=True):
        seen = detect(task, model, frames(path, task.suffixes, options.every), options.score)
        videos[name] = graph(f"video {name}", seen, known.index(options.person), options)
    classes = {
        HUMAN: tuple(sorted({run[2] for name in names for runs in said[name].people for run in runs})),
        OBJECT: (),
        CLIP: tuple(sorted({label for name in names for label in said[name].clip})),
    }
    width = next(iter(videos.values())).human.shape[2] - len(BOX) - 1
    node = (*(f"pooled {channel}" for channel in range(width)), *BOX, "score")
    meta = Meta(
        name="extracted",
        mode="frame",
        features={HUMAN: node, OBJECT: node, "edge": EDGE},
        classes=classes,
        categories=("unknown", *known),
        videos={name: {"subject": said[name].subject, "activity": said[name].activity} for name in names},
        units={HUMAN: "channels of a pyramid; share of the frame", OBJECT: "likewise", "edge": "share of the frame"},
        source=f"extracted by a detector of {task.preprocess.name}",
    )
    subjects = sorted({said[name].subject for name in names})
    folds = []
    for subject in subjects if len(subjects) > 1 else ():
        parts = (tuple(n for n in names if (said[n].subject == subject) == held) for held in (False, True))
        folds.append(Fold(f"subject {subject}", *parts))
    return meta, folds, {name: labelled(name, video, said[name], classes) for name, video in videos.items()}


def main(arguments: list[str] | None = None) -> int:
    """Writes the layout and prints what it holds."""
    parser = argparse.ArgumentParser("python -m tasks.hoi.extract", description=__doc__)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="a video, or a folder of its frames")
    parser.add_argument("--detector", type=Path, required=True, metavar="RUN", help="a record of task=detection")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write; is made")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="JSON: who acts, and what happens when")
    plain = Options()
    for name, kind in (("person", str), ("people", int), ("objects", int), ("every", int), ("score", float)):
        value: Any = getattr(plain, name)
        parser.add_argument(f"--{name}", type=kind, default=value, help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        from kdbench.runs.deployment import read_run
        from tasks.detection.task import Detection

        if given.out.exists():
            raise KDBenchError(f"--out {given.out}: is there already; choose another folder")
        options = Options(given.person, given.people, given.objects, given.every, given.score)
        run = read_run(given.detector)
        if not isinstance(run.task, Detection):
            raise KDBenchError(
                f"--detector {given.detector}: a run of task={run.record.task}, expected one of detection"
            )
        meta, folds, videos = extract(run.task, run.artifact().module, given.inputs, options, given.labels)
        write(given.out, meta, folds, videos)
    except KDBenchError as error:
        print(error, file=sys.stderr)
        return 1
    for name, video in videos.items():
        nodes = [meta.categories[category] for category in video.category.tolist()]
        seen = video.mask.mean(0).round(2).tolist()
        print(json.dumps({"video": name, "steps": video.steps, "objects": nodes, "seen": seen}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
