"""Charades with the graphs of Action Genome: which of 157 actions occur in a clip, from boxes and relations.

Sigurdsson et al.: Hollywood in Homes, ECCV 2016; Ji, Krishna, Fei-Fei, Niebles: Action Genome, CVPR 2020. Read are, in
the folder itself, in ``annotations`` or in ``Charades``: ``Charades_v1_train.csv``, ``Charades_v1_test.csv``,
``Charades_v1_classes.txt``, ``person_bbox.pkl`` and ``object_bbox_and_relationship.pkl``. Of the two pickles only
arrays and plain values are read: what else they ask for is refused and not run. A frame has one person and at most one
object of a category, whose track is the category's. There are no features of images: nodes are boxes, relations and
categories.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.pickles import read_pickle
from kdbench.errors import KDBenchError, absent, nearest, printable, reading
from tasks.hoi.boxes import BOX, EDGE, edges
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN, Fold, Meta, Video

PLACES = (".", "annotations", "Charades")
TABLES = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}
CLASSES, PERSONS, OBJECTS = "Charades_v1_classes.txt", "person_bbox.pkl", "object_bbox_and_relationship.pkl"
GROUPS = {
    "attention": ("looking_at", "not_looking_at", "unsure"),
    "spatial": ("above", "beneath", "in_front_of", "behind", "on_the_side_of", "in"),
    "contacting": (
        "carrying", "covered_by", "drinking_from", "eating", "have_it_on_the_back", "holding", "leaning_on", "lying_on",
        "not_contacting", "other_relationship", "sitting_on", "standing_on", "touching", "twisting", "wearing",
        "wiping", "writing_on",
    ),
}  # fmt: skip
RELATIONS = tuple(name for names in GROUPS.values() for name in names)


def files(root: Path) -> list[Path]:
    """Returns the files that :func:`convert` reads.

    Raises:
        KDBenchError: One is missing.
    """
    found = []
    for name in (*TABLES.values(), CLASSES, PERSONS, OBJECTS):
        at = [root / place / name for place in PLACES if (root / place / name).is_file()]
        if not at:
            raise KDBenchError(f"{absent(root / name)}; it may also lie in {' or '.join(PLACES[1:])}")
        found.append(at[0])
    return found


def convert(root: Path) -> tuple[Meta, list[Fold], dict[str, Video]]:
    """Reads the videos that all files know; writes nothing.

    One without a person, without an object or of fewer than two frames is left out, and counted in ``meta.source``.

    Args:
        root: Folder of :func:`files`.

    Raises:
        KDBenchError: A file is missing or not as described above.
    """
    train, test, classes, persons, objects = files(root)
    actions = _classes(classes)
    tables = {part: _table(path, actions) for part, path in (("train", train), ("test", test))}
    people, things = _pickled(persons), _pickled(objects)
    frames: dict[str, list[str]] = {}
    for key in sorted(people.keys() & things.keys(), key=str):
        if not (found := re.fullmatch(r"([\w-]+)\.mp4/\d{6}\.png", str(key))):
            raise KDBenchError(f"{printable(objects)}: {str(key)[:60]!r} names no frame, expected VIDEO.mp4/000001.png")
        frames.setdefault(found[1], []).append(key)
    try:
        kinds = sorted({str(thing["class"]) for keys in frames.values() for key in keys for thing in things[key]})
    except (KeyError, TypeError):
        raise KDBenchError(f"{printable(objects)}: an object of a frame has no class") from None
    categories = ("unknown", *kinds)
    listed = [name for table in tables.values() for name in table if name in frames]
    videos = {}
    for name in listed:
        labels = next(table[name][1] for table in tables.values() if name in table)
        try:
            video = _video([(key, people[key], things[key]) for key in frames[name]], categories, labels)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            where = f"{printable(objects)}: video {name}"
            raise KDBenchError(f"{where} is not as Action Genome has it: {error!r}") from None
        if video is not None:
            videos[name] = video
    meta = Meta(
        name="charades_ag",
        mode="frame",
        features={HUMAN: BOX, OBJECT: (*BOX, *RELATIONS), "edge": EDGE},
        classes={HUMAN: (), OBJECT: (), CLIP: tuple(actions.values())},
        categories=categories,
        videos={
            name: {"subject": table[name][0], "activity": ""}
            for table in tables.values()
            for name in table
            if name in videos
        },
        units=dict.fromkeys((HUMAN, OBJECT, "edge"), "share of width and height of the image"),
        source="Sigurdsson et al.: Hollywood in Homes, ECCV 2016; Ji et al.: Action Genome, CVPR 2020; "
        f"{len(listed) - len(videos)} videos left out",
        licence="non-commercial",
    )
    parts = (tuple(name for name in tables[part] if name in videos) for part in ("train", "test"))
    return meta, [Fold("official", *parts)], videos


def _classes(path: Path) -> dict[str, str]:
    """Returns the names of the actions by their code, in the order of the file."""
    with reading(path):
        lines = path.read_text("utf-8", "replace").splitlines()
    found = {code: name for code, _, name in (line.strip().partition(" ") for line in lines) if code}
    if not found or not all(re.fullmatch(r"c\d{3}", code) and name for code, name in found.items()):
        raise KDBenchError(f"{printable(path)}: expected lines such as 'c000 Holding some clothes'")
    return found


def _table(path: Path, actions: Mapping[str, str]) -> dict[str, tuple[str, np.ndarray]]:
    """Returns subject and labels of each video."""
    place = {code: row for row, code in enumerate(actions)}
    found = {}
    with reading(path), path.open(newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream)
        if missing := {"id", "subject", "actions"} - {*(reader.fieldnames or ())}:
            raise KDBenchError(f"{printable(path)}: there is no column {min(missing)!r}")
        for row in reader:
            labels = np.zeros(len(actions), np.uint8)
            for code in (part.split(" ")[0] for part in (row["actions"] or "").split(";") if part):
                if code not in place:
                    raise KDBenchError(f"{printable(path)}: video {row['id']}: {code!r} is no action of {CLASSES}")
                labels[place[code]] = 1
            found[row["id"]] = row["subject"], labels
    return found


def _pickled(path: Path) -> dict[Any, Any]:
    held = read_pickle(path, "Action Genome")
    if not isinstance(held, dict):
        raise KDBenchError(f"{printable(path)}: holds {type(held).__name__}, expected a dict of frames")
    return held


def _video(frames: list[tuple[str, Any, Any]], categories: tuple[str, ...], labels: np.ndarray) -> Video | None:
    """Makes a video of its frames, each its name, person and objects; None where it has not enough of them."""
    seen = {str(thing["class"]) for _, _, things in frames for thing in things if _seen(thing)}
    shown = sorted(categories.index(name) for name in seen)
    place = {category: 1 + row for row, category in enumerate(shown)}
    steps, nodes = len(frames), 1 + len(shown)
    boxes, mask = np.zeros((steps, nodes, 4)), np.zeros((steps, nodes), bool)
    relations = np.zeros((steps, len(shown), len(RELATIONS)))
    for step, (_, person, things) in enumerate(frames):
        size = np.tile(np.asarray(person["bbox_size"], np.float64), 2)
        found = np.asarray(person["bbox"], np.float64).reshape(-1, 4)
        if len(found):
            boxes[step, 0], mask[step, 0] = found[0] / size, True
        for thing in things:
            if _seen(thing):
                at = place[categories.index(str(thing["class"]))]
                x, y, width, height = (float(value) for value in thing["bbox"])
                boxes[step, at], mask[step, at] = np.array([x, y, x + width, y + height]) / size, True
                relations[step, at - 1] = _relations(thing)
    mask &= np.isfinite(boxes).all(2)
    there = mask.any(1)
    if there.sum() < 2 or not shown or not mask.any(0).all():
        return None
    boxes[~mask] = 0.0
    numbers = np.array([int(key.rpartition("/")[2][:6]) for key, _, _ in frames], np.int32)
    return Video(
        human=boxes[there, :1].astype(np.float16),
        object=np.concatenate([boxes[there, 1:], relations[there]], 2).astype(np.float16),
        edge=edges(boxes[there], mask[there]).astype(np.float16),
        category=np.array(shown, np.uint8),
        mask=mask[there],
        human_label=np.full((int(there.sum()), 1), UNKNOWN, np.int16),
        object_label=np.full((int(there.sum()), len(shown)), UNKNOWN, np.int16),
        clip_label=labels,
        time=np.stack([numbers[there], numbers[there]], 1),
    )


def _seen(thing: Mapping[str, Any]) -> bool:
    return bool(thing["visible"]) and thing["bbox"] is not None


def _relations(thing: Mapping[str, Any]) -> np.ndarray:
    found = np.zeros(len(RELATIONS))
    for group in GROUPS:
        for name in thing[f"{group}_relationship"] or ():
            if name not in RELATIONS:
                raise ValueError(f"there is no relation {name!r}: {nearest(str(name), RELATIONS)}")
            found[RELATIONS.index(name)] = 1
    return found
