"""The Bimanual Actions Dataset: what each hand does at every step, among boxes of objects in space.

Dreher, Waechter, Asfour: Learning Object-Action Relations from Bimanual Human Demonstration Using Graph Networks, RA-L
2020. Read are ``bimacs_derived_data/<subject>/<task>/<take>/3d_objects`` and ``spatial_relations``, a file
``frame_<n>.json`` a frame, and ``bimacs_rgbd_data_ground_truth/<subject>/<task>/<take>.json``: for each hand frames and
actions in turn, beginning and ending with a frame. Both hands are people, every other object is one; each subject is
held out in turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.errors import KDBenchError, absent, nearest, printable, reading
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN, Fold, Meta, Video

DERIVED, TRUTH = "bimacs_derived_data", "bimacs_rgbd_data_ground_truth"
ACTIONS = (
    "idle", "approach", "retreat", "lift", "place", "hold", "pour", "cut", "hammer", "saw", "stir", "screw", "drink",
    "wipe",
)  # fmt: skip
RELATIONS = (
    "contact", "above", "below", "left of", "right of", "behind of", "in front of", "inside", "surround",
    "moving together", "halting together", "fixed moving together", "getting close", "moving apart", "stable",
)  # fmt: skip
HANDS = {"LeftHand": "left_hand", "RightHand": "right_hand"}
#: Frames of a second, and how many of them make a step.
FRAMES, STRIDE = 30.0, 10
BOX = tuple(f"{what} {axis}" for what in ("centre", "size", "movement") for axis in "xyz")


def takes(root: Path) -> list[tuple[str, Path, Path]]:
    """Returns of each recording its subject, the folder of its frames and the file of its actions, in natural order.

    Raises:
        KDBenchError: There is none, or one without actions.
    """
    derived = root / DERIVED
    with reading(root):
        folders = sorted(derived.glob("*/*/*/3d_objects"), key=_natural) if derived.is_dir() else []
    if not folders:
        raise KDBenchError(f"{absent(derived)}; expected <subject>/<task>/<take>/3d_objects below it")
    found = []
    for folder in folders:
        subject, task, take = folder.parent.relative_to(derived).parts
        truth = root / TRUTH / subject / task / f"{take}.json"
        if not truth.is_file():
            raise KDBenchError(f"{absent(truth)}; expected the actions of both hands in {printable(folder.parent)}")
        found.append((subject, folder.parent, truth))
    return found


def files(root: Path) -> list[Path]:
    """Returns all files that :func:`convert` reads."""
    found = []
    for _, folder, truth in takes(root):
        found += [truth, *(file for pair in _frames(folder) for file in pair)]
    return found


def convert(root: Path) -> tuple[Meta, list[Fold], dict[str, Video]]:
    """Reads every recording, every tenth frame of it; writes nothing.

    Args:
        root: Folder with :data:`DERIVED` and :data:`TRUTH`.

    Raises:
        KDBenchError: A file is missing or not as described above.
    """
    recorded = takes(root)
    read = {
        "_".join(folder.relative_to(root / DERIVED).parts): (subject, _recording(folder), truth)
        for subject, folder, truth in recorded
    }
    names = sorted({kind for _, frames, _ in read.values() for objects, _ in frames for kind, _ in objects.values()})
    categories = ("unknown", *(name for name in names if name not in HANDS))
    videos = {name: _video(frames, truth, categories) for name, (_, frames, truth) in read.items()}
    subjects = {name: subject for name, (subject, _, _) in read.items()}
    meta = Meta(
        name="bimanual",
        mode="frame",
        features={HUMAN: BOX, OBJECT: BOX, "edge": (*RELATIONS, "offset x", "offset y", "offset z", "distance")},
        classes={HUMAN: ACTIONS, OBJECT: (), CLIP: ()},
        categories=categories,
        videos={
            name: {"subject": subject, "activity": name.removeprefix(f"{subject}_").rpartition("_take")[0]}
            for name, subject in subjects.items()
        },
        units=dict.fromkeys((HUMAN, OBJECT, "edge"), "as released"),
        rate=FRAMES / STRIDE,
        source="Dreher, Waechter, Asfour: Learning Object-Action Relations from Bimanual Human Demonstration Using "
        "Graph Networks, RA-L 2020",
    )
    folds = [
        Fold(who, *(tuple(n for n, whose in subjects.items() if (whose == who) == held) for held in (False, True)))
        for who in dict.fromkeys(subjects.values())
    ]
    return meta, folds, videos


Objects = dict[str, tuple[str, np.ndarray]]
Frame = tuple[Objects, list[tuple[str, str, int]]]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.as_posix())]


def _frames(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the two files of each step: objects and relations."""
    with reading(folder):
        count = len([*(folder / "3d_objects").glob("frame_*.json")])
    for number in range(0, count, STRIDE):
        yield folder / "3d_objects" / f"frame_{number}.json", folder / "spatial_relations" / f"frame_{number}.json"


def _json(path: Path) -> Any:
    if not path.is_file():
        raise KDBenchError(f"{absent(path)}; expected a file for each frame, from 0 on")
    try:
        with reading(path):
            return json.loads(path.read_bytes())
    except ValueError as error:
        raise KDBenchError(f"{printable(path)}: is no JSON ({error})") from None


def _recording(folder: Path) -> list[Frame]:
    """Returns by step the objects by instance, each its category and what it is described by, and their relations."""
    found = []
    for of_objects, of_relations in _frames(folder):
        listed, related = _json(of_objects), _json(of_relations)
        path = of_objects
        try:
            objects = {str(o["instance_name"]): (str(o["class_name"]), _box(o)) for o in listed}
            path, order = of_relations, [str(o["instance_name"]) for o in listed]
            relations = [
                (order[r["subject_index"]], order[r["object_index"]], _relation(path, r["relation_name"]))
                for r in related
            ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise KDBenchError(f"{printable(path)}: is not a list of what is in a frame: {what}") from None
        found.append((objects, relations))
    return found


def _box(given: Mapping[str, Any]) -> np.ndarray:
    """Returns middle, size and movement since the frame before, ``(9,)``."""
    low, high, past = (
        np.array([given[box][f"{axis}{end}"] for axis in "xyz"], np.float64)
        for box, end in (("bounding_box", 0), ("bounding_box", 1), ("past_bounding_box", 0))
    )
    last = np.array([given["past_bounding_box"][f"{axis}1"] for axis in "xyz"], np.float64)
    return np.concatenate([(low + high) / 2, high - low, (low + high - past - last) / 2])


def _relation(path: Path, name: str) -> int:
    if name not in RELATIONS:
        raise KDBenchError(f"{printable(path)}: there is no relation {name!r}: {nearest(str(name), RELATIONS)}")
    return RELATIONS.index(name)


def _video(frames: list[Frame], truth: Path, categories: tuple[str, ...]) -> Video:
    kinds = {instance: kind for objects, _ in frames for instance, (kind, _) in objects.items()}
    things = sorted(instance for instance, kind in kinds.items() if kind not in HANDS)
    hands = {kind: instance for instance, kind in kinds.items() if kind in HANDS}
    order = {name: row for row, name in enumerate([*(hands.get(hand, hand) for hand in HANDS), *things])}
    steps, nodes = len(frames), len(order)
    values, mask = np.zeros((steps, nodes, len(BOX))), np.zeros((steps, nodes), bool)
    edge = np.zeros((steps, nodes, nodes, len(RELATIONS) + 4))
    for step, (objects, relations) in enumerate(frames):
        for instance, (_, box) in objects.items():
            if np.isfinite(box).all():
                values[step, order[instance]], mask[step, order[instance]] = box, True
        for subject, thing, relation in relations:
            edge[step, order[subject], order[thing], relation] = 1
    offset = values[:, None, :, :3] - values[:, :, None, :3]
    edge[..., len(RELATIONS) : -1], edge[..., -1] = offset, np.linalg.norm(offset, axis=3)
    edge *= (mask[:, :, None] & mask[:, None])[..., None]
    first = STRIDE * np.arange(steps)
    return Video(
        human=values[:, :2].astype(np.float16),
        object=values[:, 2:].astype(np.float16),
        edge=edge.astype(np.float16),
        category=np.array([categories.index(kinds[thing]) for thing in things], np.uint8),
        mask=mask,
        human_label=np.stack([_labels(truth, key, first) for key in HANDS.values()], 1),
        object_label=np.full((steps, len(things)), UNKNOWN, np.int16),
        clip_label=np.zeros(0, np.uint8),
        time=np.stack([first, first + STRIDE - 1], 1).astype(np.int32),
    )


def _labels(truth: Path, hand: str, frames: np.ndarray) -> np.ndarray:
    """Returns the action of a hand at some frames; frames of no action, and behind the last one, have none."""
    held = _json(truth)
    listed = held.get(hand) if isinstance(held, dict) else None
    if not isinstance(listed, list) or len(listed) % 2 == 0 or not all(isinstance(n, int) for n in listed[::2]):
        raise KDBenchError(f"{printable(truth)}: {hand} is no list of frames and actions in turn, ending with a frame")
    starts, actions = listed[::2], [UNKNOWN if action is None else action for action in listed[1::2]]
    for action in actions:
        if not isinstance(action, int) or not UNKNOWN <= action < len(ACTIONS):
            where = f"{printable(truth)}: {hand}"
            raise KDBenchError(f"{where} has the action {action!r}, expected 0 to {len(ACTIONS) - 1} or null")
    at = np.searchsorted(starts, frames, side="right") - 1
    # The last frame is the end of the last action, which it still belongs to.
    at = np.where(frames == starts[-1], len(actions) - 1, at)
    inside = (at >= 0) & (at < len(actions))
    return np.where(inside, np.array([*actions, UNKNOWN])[np.where(inside, at, -1)], UNKNOWN).astype(np.int16)
