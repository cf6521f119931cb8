"""How interaction data lies on the disk, whatever it was converted from: one ``.npz`` a video, without pickle.

``<root>/meta.json`` says what the arrays mean (:class:`Meta`), ``splits.json`` which videos are training and test of
each fold, ``videos/<id>.npz`` holds a :class:`Video`. ``stats.json`` tells mean and spread of the values over the
training videos of the first fold, of all where there is none; it is for who looks at them and is not read. A step is a
frame or an annotated segment; a node is a person or an object, people first.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from kdbench.base.store import write_atomic
from kdbench.errors import KDBenchError, absent, printable, reading

SCHEMA = 1
#: Label of what has none.
UNKNOWN = -1
#: Kinds of nodes, and of labels.
HUMAN, OBJECT, CLIP = "human", "object", "clip"


@dataclass(frozen=True)
class Meta:
    """What the arrays of a data set mean.

    Attributes:
        name: Of the data set.
        mode: What a step is: ``segment`` or ``frame``.
        features: Names of the values of a ``human`` node, an ``object`` node and an ``edge``, in their order.
        classes: Names of the labels of a ``human``, of an ``object``, and of the whole ``clip`` (empty where it has
            none).
        categories: Names of the object categories; 0 is the unknown one.
        videos: By id, ``subject`` and ``activity``.
        units: What the values of a ``human`` node, an ``object`` node and an ``edge`` are measured in.
        rate: Steps a second, where a step is a frame.
        source: Where the data come from.
        licence: Under which terms.
        schema: Version of this layout.
    """

    name: str
    mode: str
    features: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, tuple[str, ...]]
    categories: tuple[str, ...]
    videos: Mapping[str, Mapping[str, str]]
    units: Mapping[str, str] = field(default_factory=dict)
    rate: float | None = None
    source: str = ""
    licence: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class Video:
    """The steps of a video: T steps, H people, N objects, M = H + N nodes, of which an absent one has any values.

    Attributes:
        human: ``(T, H, Fh)`` float16.
        object: ``(T, N, Fo)`` float16.
        edge: ``(T, M, M, Fe)`` float16; ``[t, i, j]`` is what node i sees of node j.
        category: ``(N,)`` uint8 category of each object.
        mask: ``(T, M)`` bool, nodes that are there.
        human_label: ``(T, H)`` int16, :data:`UNKNOWN` where there is none.
        object_label: ``(T, N)`` int16, likewise.
        clip_label: ``(C,)`` uint8, one where the clip has the label; of length 0 where it has none.
        time: ``(T, 2)`` int32, first and last frame of each step.
    """

    human: np.ndarray
    object: np.ndarray
    edge: np.ndarray
    category: np.ndarray
    mask: np.ndarray
    human_label: np.ndarray
    object_label: np.ndarray
    clip_label: np.ndarray
    time: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.human)

    @property
    def objects(self) -> int:
        """N."""
        return self.object.shape[1]

    def digest(self) -> str:
        """Digests types, shapes and values of all arrays."""
        found = hashlib.sha256()
        for entry in fields(self):
            value = np.ascontiguousarray(getattr(self, entry.name))
            found.update(f"{entry.name} {value.dtype} {value.shape}".encode())
            found.update(value.tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Fold:
    """One cut of a data set; ``val`` is None where validation is cut from training."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """A data set that was read.

    Attributes:
        meta: What its arrays mean.
        folds: Its cuts.
        videos: By id.
        digest: Of all of them.
        embedded: Whether it comes without files.
    """

    meta: Meta
    folds: tuple[Fold, ...]
    videos: Mapping[str, Video]
    digest: str
    embedded: bool = field(default=False, kw_only=True)


DTYPES = {
    "human": np.float16,
    "object": np.float16,
    "edge": np.float16,
    "category": np.uint8,
    "mask": np.bool_,
    "human_label": np.int16,
    "object_label": np.int16,
    "clip_label": np.uint8,
    "time": np.int32,
}


def write(root: Path, meta: Meta, folds: Sequence[Fold], videos: Mapping[str, Video]) -> None:
    """Writes a data set below ``root``, which is made.

    Raises:
        KDBenchError: A video is not as :func:`check` expects it, or a fold leaks or lacks videos.
    """
    for fold in folds:
        _check_fold(root, fold, meta)
    (root / "videos").mkdir(parents=True)
    for name, video in videos.items():
        check(name, video, meta)
        kept = {key: getattr(video, key).astype(dtype) for key, dtype in DTYPES.items()}
        with (root / "videos" / f"{name}.npz").open("wb") as stream:
            np.savez(stream, **kept)
    write_atomic(root / "meta.json", json.dumps(asdict(meta), indent=1))
    write_atomic(root / "splits.json", json.dumps({"folds": [asdict(fold) for fold in folds]}, indent=1))
    mean, std = moments([videos[name] for name in (folds[0].train if folds else videos)])
    names = {
        kind: dict(zip(own, zip(mean[kind], std[kind], strict=True), strict=True))
        for kind, own in meta.features.items()
    }
    write_atomic(
        root / "stats.json", json.dumps({"fold": folds[0].name if folds else None, "mean_std": names}, indent=1)
    )


def moments(videos: Sequence[Video]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns mean and standard deviation of the values of ``human``, ``object`` and ``edge``.

    Over the nodes that are there, and over pairs of two of them; a spread below 1e-4 is one, as the value is constant.
    """
    mean, std = {}, {}
    for name, values in _pooled(videos).items():
        mean[name] = [round(float(x), 6) for x in values.mean(0)]
        std[name] = [round(float(x), 6) if x > 1e-4 else 1.0 for x in values.std(0)]
    return mean, std


def _pooled(videos: Sequence[Video]) -> dict[str, np.ndarray]:
    held: dict[str, list[np.ndarray]] = {HUMAN: [], OBJECT: [], "edge": []}
    for video in videos:
        people = video.human.shape[1]
        held[HUMAN].append(video.human[video.mask[:, :people]])
        held[OBJECT].append(video.object[video.mask[:, people:]])
        pairs = video.mask[:, :, None] & video.mask[:, None] & ~np.eye(video.mask.shape[1], dtype=bool)
        held["edge"].append(video.edge[pairs])
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in held.items()}


def read(root: Path) -> Layout:
    """Reads a data set whole.

    Raises:
        KDBenchError: A file is missing or not what it should be; one line that says which, and what was expected.
    """
    meta: Meta = _parsed(root / "meta.json", Meta)
    if meta.schema != SCHEMA:
        raise KDBenchError(f"{printable(root / 'meta.json')}: schema {meta.schema}, expected {SCHEMA}")
    folds = _parsed(root / "splits.json", dict[str, tuple[Fold, ...]])["folds"]
    videos = {name: _read_video(root / "videos" / f"{name}.npz") for name in meta.videos}
    for name, video in videos.items():
        check(name, video, meta)
    for fold in folds:
        _check_fold(root, fold, meta)
    listed = [asdict(meta), [asdict(fold) for fold in folds], {name: video.digest() for name, video in videos.items()}]
    made_of = json.dumps(listed, sort_keys=True)
    return Layout(meta, folds, videos, hashlib.sha256(made_of.encode()).hexdigest()[:16])


def _parsed(path: Path, form: Any) -> Any:
    if not path.is_file():
        raise KDBenchError(f"{absent(path)}; expected a folder with meta.json, splits.json and videos/")
    with reading(path):
        text = path.read_bytes()
    try:
        return TypeAdapter(form).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KDBenchError(f"{printable(path)}: {where}: {first['msg'][0].lower() + first['msg'][1:]}") from None


def _read_video(path: Path) -> Video:
    if not path.is_file():
        raise KDBenchError(f"{absent(path)}; meta.json names this video")
    return Video(**arrays(path, tuple(DTYPES)))


def arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an ``.npz`` archive, none of which may be pickled.

    Raises:
        KDBenchError: It is no such archive, or lacks one of them.
    """
    try:
        with reading(path), np.load(path, allow_pickle=False) as archive:
            missing = {*names} - {*archive.files}
            if missing:
                raise KDBenchError(
                    f"{printable(path)}: there is no array {min(missing)!r}, expected {', '.join(names)}"
                )
            return {name: archive[name] for name in names}
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        if "pickle" in str(error).lower():
            raise KDBenchError(
                f"{printable(path)}: holds pickled objects, which are not read as they can run code; write plain arrays"
            ) from None
        raise KDBenchError(f"{printable(path)}: is no .npz archive of arrays ({error})") from None


def check(name: str, video: Video, meta: Meta) -> None:
    """Checks one video.

    Raises:
        KDBenchError: Arrays of inconsistent length, no object, fewer than two steps, a node that is never there, a
            value that is no number, or a label outside of the vocabulary.
    """
    steps, people = video.human.shape[:2] if video.human.ndim == 3 else (0, 0)
    objects = video.object.shape[1] if video.object.ndim == 3 else 0
    where = f"video {name}"
    if steps and not objects:
        raise KDBenchError(f"{where}: has no objects, expected one at least: leave the video out")
    if steps == 1:
        raise KDBenchError(f"{where}: has one step, expected two at least: leave the video out")
    nodes, width = people + objects, {kind: len(names) for kind, names in meta.features.items()}
    clip = len(meta.classes.get(CLIP, ()))
    expected = {
        "human": (steps, people, width[HUMAN]),
        "object": (steps, objects, width[OBJECT]),
        "edge": (steps, nodes, nodes, width["edge"]),
        "category": (objects,),
        "mask": (steps, nodes),
        "human_label": (steps, people),
        "object_label": (steps, objects),
        "clip_label": (clip,),
        "time": (steps, 2),
    }
    for key, shape in expected.items():
        found = getattr(video, key).shape
        if found != shape or not steps:
            raise KDBenchError(
                f"{where}: {key} has the shape {found}, expected {shape} for {steps} steps, {people} people and "
                f"{objects} objects"
            )
    _check_values(where, video, meta)


def _check_values(where: str, video: Video, meta: Meta) -> None:
    people = video.human.shape[1]
    gone = np.flatnonzero(~(video.mask & _numbers(video)).any(0))
    if gone.size:
        node = int(gone[0])
        what = f"person {node}" if node < people else f"object {node - people}"
        raise KDBenchError(f"{where}: {what} is never there (all of its track is absent or NaN): leave it out")
    if (video.mask & ~_numbers(video)).any():
        step, node = np.argwhere(video.mask & ~_numbers(video))[0]
        raise KDBenchError(f"{where}: node {node} has a value that is no number at step {step}: mask it there")
    pairs = video.mask[:, :, None] & video.mask[:, None]
    if not np.isfinite(video.edge[pairs]).all():
        raise KDBenchError(f"{where}: edge holds a value that is no number between nodes that are there")
    for kind, labels in ((HUMAN, video.human_label), (OBJECT, video.object_label)):
        known = len(meta.classes[kind])
        if labels.size and not UNKNOWN <= labels.min() <= labels.max() < known:
            raise KDBenchError(
                f"{where}: {kind}_label holds {labels.min()} to {labels.max()}, expected 0 to {known - 1} for the "
                f"{known} classes of meta.json, or {UNKNOWN} for none"
            )
    if video.category.max() >= len(meta.categories):
        raise KDBenchError(
            f"{where}: category holds {video.category.max()}, expected 0 to {len(meta.categories) - 1} for the "
            "categories of meta.json"
        )


def _numbers(video: Video) -> np.ndarray:
    """Says which nodes have finite values, ``(T, M)``."""
    return np.concatenate([np.isfinite(video.human).all(2), np.isfinite(video.object).all(2)], 1)


def _check_fold(root: Path, fold: Fold, meta: Meta) -> None:
    where = f"{printable(root / 'splits.json')}: fold {fold.name!r}"
    parts = {"train": fold.train, "val": fold.val or (), "test": fold.test}
    for part, names in parts.items():
        unknown = {*names} - {*meta.videos}
        if unknown:
            raise KDBenchError(f"{where}: {part} names the video {min(unknown)!r}, which meta.json does not")
    learned, held_out = (
        {meta.videos[n]["subject"] for n in names} for names in ((*fold.train, *parts["val"]), fold.test)
    )
    both = learned & held_out
    if both:
        raise KDBenchError(
            f"{where}: subject {min(both)!r} is in training and in test, which leaks: hold whole subjects out"
        )
    if not fold.train or not fold.test:
        raise KDBenchError(f"{where}: {'train' if not fold.train else 'test'} is empty, expected videos")
