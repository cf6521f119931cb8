"""CAD-120 as Koppula's released segment features: one step a segment, ten sub-activities, twelve affordances.

Koppula, Gupta, Saxena: Learning Human Activities and Object Affordances from RGB-D Videos, IJRR 2013; research and
education only. Read is ``cad120_segments.npz``, which holds the released features as ordinals 0 to 10: the ten bits of
a released value say below which of ten thresholds the measured one lies. Where it is missing the released text files
are read (:mod:`tasks.hoi.cad120_text`), which give the same. Nobody is in training and in test: four folds,
each of which holds one of the four people out, as the literature has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdbench.errors import KDBenchError, absent, printable
from tasks.hoi import cad120_text
from tasks.hoi.cad120_arrays import ARRAYS, LEVELS
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN, Fold, Meta, Video, arrays

FILE = "cad120_segments.npz"


def convert(root: Path) -> tuple[Meta, list[Fold], dict[str, Video]]:
    """Reads the released features; writes nothing.

    Args:
        root: Folder with ``cad120_segments.npz`` or ``raw.tar.xz``.

    Raises:
        KDBenchError: Both are missing, or hold something else.
    """
    file = files(root)[0]
    held = arrays(file, tuple(ARRAYS)) if file.name == FILE else cad120_text.read(file)
    _check(file, held)
    subs, affs, activities = (tuple(map(str, held[f"{name}_names"])) for name in ("sub", "aff", "activity"))
    ids = [str(name) for name in held["video_id"]]
    subjects = [str(int(subject)) for subject in held["subject"]]
    meta = Meta(
        name="cad120",
        mode="segment",
        features={HUMAN: _names("body", 63, 16) + ("has_past",), OBJECT: _names("object", 18, 4), "edge": _pairs()},
        classes={HUMAN: subs, OBJECT: affs, CLIP: activities},
        categories=("unknown",),
        videos={
            name: {"subject": subject, "activity": activities[int(number)]}
            for name, subject, number in zip(ids, subjects, held["activity"], strict=True)
        },
        units=dict.fromkeys((HUMAN, OBJECT, "edge"), "share of the ten thresholds that lie below the value"),
        source="Koppula, Gupta, Saxena: Learning Human Activities and Object Affordances from RGB-D Videos, IJRR 2013",
        licence="research and education only",
    )
    folds = [
        Fold(
            f"subject {subject}",
            tuple(name for name, whose in zip(ids, subjects, strict=True) if whose != subject),
            tuple(name for name, whose in zip(ids, subjects, strict=True) if whose == subject),
        )
        for subject in sorted({*subjects}, key=int)
    ]
    return meta, folds, {name: _video(held, row, len(activities)) for row, name in enumerate(ids)}


def files(root: Path) -> list[Path]:
    """Returns what is read: the arrays, or where they are missing the archive of the text files and the list of frames.

    Raises:
        KDBenchError: There is neither.
    """
    if (root / FILE).is_file():
        return [root / FILE]
    found = [root / name for name in (cad120_text.ARCHIVE, cad120_text.FRAMES) if (root / name).is_file()]
    if found and found[0].name == cad120_text.ARCHIVE:
        return found
    raise KDBenchError(
        f"{absent(root / FILE)}; expected the segment features of CAD-120 in one archive, or their text files in "
        f"{cad120_text.ARCHIVE}"
    )


def _names(what: str, own: int, past: int) -> tuple[str, ...]:
    return tuple(f"{what} {i}" for i in range(own)) + tuple(f"{what} change {i}" for i in range(past))


def _pairs() -> tuple[str, ...]:
    return tuple(f"body to object {i}" for i in range(40)) + tuple(f"object to object {i}" for i in range(20))


def _check(file: Path, held: Mapping[str, np.ndarray]) -> None:
    """Raises a line where arrays do not belong together or have other values."""
    segments = held["seg_mask"].shape[1] if held["seg_mask"].ndim == 2 else 0
    objects = held["obj_mask"].shape[2] if held["obj_mask"].ndim == 3 else 0
    sizes = {"v": len(held["video_id"]), "t": segments, "o": objects}
    of = {"v": ("videos", "video_id"), "t": ("segments", "seg_mask"), "o": ("objects", "obj_mask")}
    for name, array in ARRAYS.items():
        found, expected = held[name].shape, array.shape(sizes)
        if not array.axes or found == expected:
            continue
        if len(found) != len(expected):
            raise KDBenchError(f"{printable(file)}: {name} has {len(found)} axes, expected {len(expected)}")
        for axis, own, wanted in zip(array.axes, found, expected, strict=False):
            if own != wanted:
                what, whose = of[axis]
                raise KDBenchError(f"{printable(file)}: {name} holds {own} {what} and {whose} {wanted}")
        raise KDBenchError(f"{printable(file)}: {name} has {found[-1]} values, expected {expected[-1]}")
    if not 0 <= held["activity"].min() <= held["activity"].max() < len(held["activity_names"]):
        raise KDBenchError(
            f"{printable(file)}: activity holds {held['activity'].max()}, expected a row of activity_names"
        )


def _video(held: Mapping[str, np.ndarray], row: int, activities: int) -> Video:
    there = held["seg_mask"][row]
    objects = np.flatnonzero(held["obj_mask"][row][there].any(0))
    present = held["obj_mask"][row][there][:, objects]
    steps, count = present.shape
    mask = np.concatenate([np.ones((steps, 1), bool), present], 1)
    edge = np.zeros((steps, 1 + count, 1 + count, 60))
    of_body = held["edge_ho"][row][there][:, objects]
    edge[:, 0, 1:, :40], edge[:, 1:, 0, :40] = of_body, of_body
    edge[:, 1:, 1:, 40:] = held["edge_oo"][row][there][:, objects][:, :, objects]
    edge[:, np.arange(1 + count), np.arange(1 + count)] = 0
    past = held["has_temp"][row][there][:, None]
    human = np.concatenate([held["node_h"][row][there], held["temp_h"][row][there] * past, LEVELS * past], 1)
    changes = held["temp_o"][row][there][:, objects] * past[:, :, None]
    thing = np.concatenate([held["node_o"][row][there][:, objects], changes], 2)
    clip = np.zeros(activities, np.uint8)
    clip[int(held["activity"][row])] = 1
    return Video(
        human=(human[:, None] / LEVELS).astype(np.float16),
        object=(thing / LEVELS).astype(np.float16),
        edge=(edge / LEVELS).astype(np.float16),
        category=np.zeros(count, np.uint8),
        mask=mask,
        human_label=held["y_sub"][row][there][:, None].astype(np.int16),
        object_label=np.where(present, held["y_aff"][row][there][:, objects], UNKNOWN).astype(np.int16),
        clip_label=clip,
        time=np.stack([held["frame_start"][row][there], held["frame_end"][row][there]], 1).astype(np.int32),
    )
