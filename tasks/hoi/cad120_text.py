"""The text files that CAD-120's segment features are released as, read out of their archive, where they stay.

Each segment of a video has a file of its nodes and edges, ``<video>_<segment>.txt``, each two in a row one of what
changes between them, ``<video>_<segment>_<segment>.txt``. A line is classes and numbers of what it is of, from 1 on,
and then ``<number>:<bit>``: ten bits a value, whether it is at most each of ten thresholds. People and activities are
those of :mod:`tasks.hoi.cad120_people`; frames are read from ``meta/Segmentation_sampled.txt`` where it lies beside the
archive, else a step's number stands for them.
"""

from __future__ import annotations

import lzma
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from kdbench.errors import KDBenchError, printable, reading
from tasks.hoi.cad120_arrays import LEVELS, empty
from tasks.hoi.cad120_people import ACTIVITIES, WHO
from tasks.hoi.kitchen.script import AFFORDANCES, SUB_ACTIVITIES

ARCHIVE = "raw.tar.xz"
FRAMES = "meta/Segmentation_sampled.txt"
#: Most bytes of a text file and files of an archive; those of the release are far smaller.
LARGEST, MOST = 1 << 20, 20_000
_NAME = re.compile(r"(\d{10})_(\d{1,3})(?:_(\d{1,3}))?\.txt")

Files = dict[tuple[int, ...], str]


def read(archive: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of :data:`tasks.hoi.cad120_arrays.ARRAYS`; nothing is unpacked.

    Raises:
        KDBenchError: A broken archive, a member that leads out of it, or a file that is not as described above.
    """
    videos: dict[str, Files] = {}
    for name, text in _members(archive).items():
        if found := _NAME.fullmatch(name):
            video, *segments = (part for part in found.groups() if part)
            videos.setdefault(video, {})[tuple(map(int, segments))] = text
    if not videos:
        raise KDBenchError(
            f"{printable(archive)}: holds no file named <video>_<segment>.txt, the features of a segment"
        )
    unknown = videos.keys() - WHO.keys()
    if unknown:
        raise KDBenchError(f"{printable(archive)}: the video {min(unknown)} is none of the {len(WHO)} of CAD-120")
    ids = sorted(videos)
    steps = max(len([key for key in files if len(key) == 1]) for files in videos.values())
    objects = max(_objects(archive, name, files) for name, files in videos.items())
    held = empty(len(ids), steps, objects)
    for row, name in enumerate(ids):
        _fill({key: value[row] for key, value in held.items()}, archive, name, videos[name])
    _frames(held, archive.parent / FRAMES, ids)
    who = [WHO[name] for name in ids]
    return held | {
        "video_id": np.array(ids),
        "subject": np.array([person for person, _ in who], np.int8),
        "activity": np.array([activity for _, activity in who], np.int8),
        "activity_names": np.array(ACTIVITIES),
        "sub_names": np.array(SUB_ACTIVITIES),
        "aff_names": np.array(AFFORDANCES),
    }


def _members(archive: Path) -> dict[str, str]:
    """Returns the text files of an archive by their names without folders."""
    found: dict[str, str] = {}
    where = printable(archive)
    try:
        with reading(archive), tarfile.open(archive) as held:
            for count, member in enumerate(held, start=1):
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise KDBenchError(f"{where}: {printable(member.name)!r} leads out of the archive or is no file")
                if count > MOST or member.size > LARGEST:
                    raise KDBenchError(f"{where}: holds more than the release does, from {printable(member.name)!r} on")
                stream = held.extractfile(member) if path.suffix == ".txt" else None
                if stream is not None:
                    found[path.name] = stream.read().decode("ascii", "replace")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise KDBenchError(f"{where}: is no archive that can be read ({error})") from None
    return found


def _objects(archive: Path, name: str, files: Files) -> int:
    first = files.get((1,), "").split(maxsplit=1)
    if not first or not first[0].isdigit():
        raise KDBenchError(f"{printable(archive)}: {name}_1.txt is missing or does not begin with a number of objects")
    return int(first[0])


def _fill(held: Mapping[str, np.ndarray], archive: Path, name: str, files: Files) -> None:
    """Writes the files of one video into its part of the arrays."""
    segments = sum(len(key) == 1 for key in files)
    for key in [(k,) for k in range(1, segments + 1)] + [(k, k + 1) for k in range(1, segments)]:
        label = "_".join(map(str, (name, *key)))
        if key not in files:
            raise KDBenchError(f"{printable(archive)}: {label}.txt is missing, video {name} has {segments} segments")
        try:
            (_segment if len(key) == 1 else _change)(held, key[-1] - 1, files[key])
        except (ValueError, IndexError, OverflowError) as error:
            raise KDBenchError(
                f"{printable(archive)}: {label}.txt is not as the release describes it: {error}"
            ) from None


def _lines(text: str, counts: Callable[[list[int]], int]) -> tuple[list[int], list[str]]:
    first, *lines = text.strip().splitlines()
    head = [int(word) for word in first.split()]
    if len(lines) != counts(head):
        raise ValueError(f"{len(lines)} lines follow the first, expected {counts(head)}")
    return head, lines


def _levels(line: str, heads: int, width: int) -> tuple[list[int], np.ndarray]:
    """Returns what a line is of, and its values: how many of the ten thresholds lie below each."""
    numbers = np.array(line.replace(":", " ").split(), np.int32)
    pairs = numbers[heads:].reshape(-1, 2)
    if len(pairs) != width * LEVELS or (pairs[:, 0] != np.arange(1, len(pairs) + 1)).any():
        raise ValueError(f"{len(pairs)} bits in a line, expected those from 1 to {width * LEVELS}")
    bits = pairs[:, 1].reshape(width, LEVELS)
    if (np.diff(bits, axis=1) < 0).any() or bits.min() < 0 or bits.max() > 1:
        raise ValueError("bits that rise and fall again, expected zeros and then ones")
    return numbers[:heads].tolist(), LEVELS - bits.sum(1)


def _row(number: int, rows: int) -> int:
    if not 1 <= number <= rows:
        raise ValueError(f"object {number} of {rows}")
    return number - 1


def _segment(held: Mapping[str, np.ndarray], step: int, text: str) -> None:
    head, lines = _lines(text, lambda head: head[0] + 1 + head[1] + head[2])
    objects, pairs, _ = head[:3]
    held["seg_mask"][step] = True
    for line in lines[:objects]:
        (label, number), values = _levels(line, 2, 18)
        row = _row(number, objects)
        held["obj_mask"][step, row], held["y_aff"][step, row], held["node_o"][step, row] = True, label - 1, values
    (label, _), held["node_h"][step] = _levels(lines[objects], 2, 63)
    held["y_sub"][step] = label - 1
    for line in lines[objects + 1 : objects + 1 + pairs]:
        (_, _, first, second), values = _levels(line, 4, 20)
        held["edge_oo"][step, _row(first, objects), _row(second, objects)] = values
    for line in lines[objects + 1 + pairs :]:
        (_, _, number), values = _levels(line, 3, 40)
        held["edge_ho"][step, _row(number, objects)] = values


def _change(held: Mapping[str, np.ndarray], step: int, text: str) -> None:
    head, lines = _lines(text, lambda head: head[0] + head[1])
    held["has_temp"][step] = True
    for line in lines[: head[0]]:
        (_, _, number), values = _levels(line, 3, 4)
        held["temp_o"][step, _row(number, held["temp_o"].shape[1])] = values
    for line in lines[head[0] :]:
        _, held["temp_h"][step] = _levels(line, 3, 16)


def _frames(held: Mapping[str, np.ndarray], listed: Path, ids: list[str]) -> None:
    """Fills in first and last frame of each segment: of a list, ``<video>;<segment>:<frame>,…;…``, or its number."""
    with reading(listed):
        lines = listed.read_text("ascii", "replace").split() if listed.is_file() else []
    frames = dict(line.split(";", 1) for line in lines if ";" in line)
    for row, name in enumerate(ids):
        there = np.flatnonzero(held["seg_mask"][row])
        spans: dict[int, tuple[int, int]] = {}
        for part in frames.get(name, "").strip(";").split(";"):
            if found := re.fullmatch(r"(\d{1,3}):(\d{1,8})(?:[\d,]*,(\d{1,8}))?", part):
                spans[int(found[1]) - 1] = int(found[2]), int(found[3] or found[2])
        for step in there:
            held["frame_start"][row, step], held["frame_end"][row, step] = spans.get(int(step), (step, step))
