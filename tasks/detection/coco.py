"""COCO's layout: images in folders, boxes in JSON; what is wrong with either is found before anything trains."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbench.base.digest import source_digest
from kdbench.base.files import read_text, reason
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, absent, nearest, printable, reading
from tasks.images import UnreadableImage, unreadable
from tasks.pixels import load

_log = logging.getLogger(__name__)

THREADS = 8
#: What a file of annotations holds.
KEYS = ("images", "categories", "annotations")
#: By split, the annotations and the folder of its images, where the configuration does not say.
FILES = {
    "train": ("annotations/instances_train2017.json", "train2017"),
    "test": ("annotations/instances_val2017.json", "val2017"),
}


class Truth(NamedTuple):
    """What is annotated on an image, in its own pixels.

    Attributes:
        boxes: ``(N, 4)`` float32 left, top, right, bottom, within the image.
        labels: ``(N,)`` int64 classes.
        areas: ``(N,)`` float32, of the objects themselves where masks told, else of their boxes.
        crowd: ``(N,)`` whether it is a region of many objects.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


class Sample(NamedTuple):
    """An image: its name, by whose hash every cut is made, its file, height and width, and what is on it."""

    name: str
    path: Path
    size: tuple[int, int]
    truth: Truth


@dataclass(frozen=True)
class Annotated:
    """A file of annotations that has been read.

    Attributes:
        path: Of the file.
        categories: Name by category id, in the order of the ids.
        samples: Its images, in the order of the file.
    """

    path: Path
    categories: Mapping[int, str]
    samples: tuple[Sample, ...]


def read_annotations(path: Path, images: Path, classes: Sequence[str] | None = None) -> Annotated:
    """Reads COCO's JSON.

    Boxes are cut off at the border of their image; those of which nothing is left are told of and left out. Images
    without boxes are kept.

    Args:
        path: Of the file.
        images: Folder of its images.
        classes: Names of the classes that are learned, in their order; None for all.

    Raises:
        KDBenchError: It is not such a file, an image has no file, or something refers to what is not there.
    """
    content = _json(path)
    named = _categories(path, content["categories"])
    kept = [*named.values()] if classes is None else [*classes]
    for name in kept:
        if name not in named.values():
            raise KDBenchError(f"data.classes: {path} has no category {name!r}: {nearest(name, named.values())}")
    if len(set(kept)) < len(kept) or not kept:
        raise KDBenchError(f"data.classes={kept}: expected one class at least, each once")
    index = {number: kept.index(name) for number, name in named.items() if name in kept}
    entries = _images(path, content["images"], images)
    own = _by_image(path, content["annotations"], entries, named)
    samples, lost = [], []
    for number, entry in entries.items():
        size = int(entry["height"]), int(entry["width"])
        truth, odd = _truth(own.get(number, []), index, size)
        lost += odd
        samples.append(Sample(Path(entry["file_name"]).stem, images / entry["file_name"], size, truth))
    if lost:
        _log.warning(
            "%s: %d boxes of no area within their image are left out, first annotation %s", path, len(lost), lost[0]
        )
    return Annotated(path, {number: name for number, name in named.items() if number in index}, tuple(samples))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise KDBenchError(absent(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise KDBenchError(f"{printable(path)}: cannot be read ({reason(error)})") from None
    except ValueError as error:
        raise KDBenchError(f"{printable(path)}: no whole JSON ({error})") from None
    held = content if isinstance(content, dict) else {}
    missing = [key for key in KEYS if not isinstance(held.get(key), list)]
    if missing:
        raise KDBenchError(f"{printable(path)}: no list {missing[0]!r}; expected COCO's {', '.join(KEYS)}")
    return held


def _field(path: Path, what: str, entry: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        shown = json.dumps(entry)[:80]
        raise KDBenchError(f"{printable(path)}: {what} without a proper {name!r}: {shown}")
    return value


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    named = {_field(path, "a category", e, "id", int): _field(path, "a category", e, "name", str) for e in entries}
    if len(named) < len(entries) or len(set(named.values())) < len(named):
        raise KDBenchError(f"{printable(path)}: two categories have one id or one name")
    if not named:
        raise KDBenchError(f"{printable(path)}: no categories")
    return dict(sorted(named.items()))


def _images(path: Path, entries: list[Any], folder: Path) -> dict[int, Any]:
    found: dict[int, Any] = {}
    gone = []
    for entry in entries:
        number = _field(path, "an image", entry, "id", int)
        name = _field(path, "an image", entry, "file_name", str)
        for side in ("height", "width"):
            _field(path, "an image", entry, side, int)
        if number in found:
            raise KDBenchError(f"{printable(path)}: two images have the id {number}")
        found[number] = entry
        if not (folder / name).is_file():
            gone.append(name)
    if gone:
        raise KDBenchError(
            f"{printable(folder)}: {len(gone)} of the {len(entries)} images of {path.name} are not there, first "
            f"{gone[0]}"
        )
    if not found:
        raise KDBenchError(f"{printable(path)}: no images")
    return found


def _by_image(
    path: Path, entries: list[Any], images: Mapping[int, Any], named: Mapping[int, str]
) -> dict[int, list[tuple[int, int, list[float], float, bool]]]:
    """Returns id, category, box, area and whether it is a crowd of each annotation, by image."""
    found: dict[int, list[tuple[int, int, list[float], float, bool]]] = {}
    lone, strange = [], []
    for entry in entries:
        number = _field(path, "an annotation", entry, "id", int)
        image = _field(path, "an annotation", entry, "image_id", int)
        category = _field(path, "an annotation", entry, "category_id", int)
        box = _field(path, "an annotation", entry, "bbox", list)
        if len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
            raise KDBenchError(
                f"{printable(path)}: annotation {number} has the bbox {json.dumps(box)[:60]}; expected four numbers: "
                "left, top, width, height"
            )
        if image not in images:
            lone.append((number, image))
        if category not in named:
            strange.append((number, category))
        area = entry.get("area")
        area = float(area) if isinstance(area, int | float) and area > 0 else float(box[2] * box[3])
        found.setdefault(image, []).append((number, category, box, area, bool(entry.get("iscrowd", 0))))
    for what, wrong in (("image", lone), ("category", strange)):
        if wrong:
            raise KDBenchError(
                f"{printable(path)}: {len(wrong)} annotations are of no {what} that the file lists, first annotation "
                f"{wrong[0][0]} of {what} {wrong[0][1]}"
            )
    return found


def _truth(
    own: list[tuple[int, int, list[float], float, bool]], index: Mapping[int, int], size: tuple[int, int]
) -> tuple[Truth, list[int]]:
    """Returns what is on an image of height and width ``size``, and the ids of boxes that leave nothing."""
    kept, lost = [], []
    for number, category, (left, top, wide, tall), area, crowd in own:
        if category not in index:
            continue
        box = max(left, 0), max(top, 0), min(left + wide, size[1]), min(top + tall, size[0])
        if box[2] - box[0] <= 0 or box[3] - box[1] <= 0:
            lost.append(number)
            continue
        kept.append((box, index[category], min(area, (box[2] - box[0]) * (box[3] - box[1])), crowd))
    boxes, labels, areas, crowds = zip(*kept, strict=True) if kept else ([], [], [], [])
    truth = Truth(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(areas, dtype=np.float32),
        np.array(crowds, dtype=bool),
    )
    return truth, lost


def examine(store: Store, annotated: Annotated) -> dict[str, str]:
    """Decodes every image once, and returns the digest of each by its name.

    Raises:
        KDBenchError: One is not a whole image, or of another size than the annotations say.
    """
    samples = annotated.samples

    def read() -> dict[str, Any]:
        with ThreadPoolExecutor(THREADS) as pool:
            found = [*pool.map(_examine, samples)]
        broken = [line for line in found if isinstance(line, KDBenchError)]
        if broken:
            raise KDBenchError(f"{broken[0]}" + (f"; {len(broken) - 1} more in this folder" if len(broken) > 1 else ""))
        return {"files": found}

    files = [sample.path for sample in samples]
    code = source_digest(["tasks.detection.coco"])
    kept = store.of_files(
        "detection-files", files, read, code=code, wait_message=f"the images of {annotated.path.name}"
    )
    found = {}
    for sample, (content, tall, wide) in zip(samples, kept["files"], strict=True):
        if (tall, wide) != sample.size:
            raise KDBenchError(
                f"{printable(sample.path)}: {wide} x {tall} pixels, but {annotated.path.name} says "
                f"{sample.size[1]} x {sample.size[0]}"
            )
        found[sample.name] = content
    return found


def _examine(sample: Sample) -> list[Any] | KDBenchError:
    try:
        with reading(sample.path):
            content = hashlib.sha256(sample.path.read_bytes()).hexdigest()[:32]
    except KDBenchError as error:
        return UnreadableImage(str(error))
    try:
        image, _ = load(sample.path)
    except Exception as error:
        return unreadable(sample.path, error)
    tall, wide = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    return [content, tall, wide]
