"""A few made-up videos, whole data sets of random numbers in the layout, and the released form of CAD-120."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from tasks.hoi.cad120_arrays import ARRAYS, LEVELS
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, Fold, Meta, Video, write
from tasks.hoi.task import HOI

#: Options of a kitchen of a few videos.
KITCHEN = {"videos": 36, "subjects": 4, "folds": 2}


def meta(videos: int = 4, **changes: Any) -> Meta:
    """What the arrays of :func:`video` mean; videos belong to two people in turn."""
    made = Meta(
        name="numbers",
        mode="frame",
        features={HUMAN: ("a", "b"), OBJECT: ("c", "d", "e"), "edge": ("f",)},
        classes={HUMAN: ("x", "y", "z"), OBJECT: ("u", "v"), CLIP: ("k",)},
        categories=("unknown", "cup"),
        videos={f"v{i}": {"subject": "ab"[i % 2], "activity": "any"} for i in range(videos)},
    )
    return replace(made, **changes)


def video(number: int = 0, steps: int = 6, people: int = 1, objects: int = 2, **changes: Any) -> Video:
    """Random values; everything is there and has a label."""
    draw, nodes = rng.numpy(number, "numbers"), people + objects
    made = Video(
        human=draw.normal(size=(steps, people, 2)).astype(np.float16),
        object=draw.normal(size=(steps, objects, 3)).astype(np.float16),
        edge=draw.normal(size=(steps, nodes, nodes, 1)).astype(np.float16),
        category=draw.integers(0, 2, objects).astype(np.uint8),
        mask=np.ones((steps, nodes), bool),
        human_label=draw.integers(0, 3, (steps, people)).astype(np.int16),
        object_label=draw.integers(0, 2, (steps, objects)).astype(np.int16),
        clip_label=draw.integers(0, 2, 1).astype(np.uint8),
        time=np.stack([np.arange(steps)] * 2, 1).astype(np.int32),
    )
    return replace(made, **changes)


def folder(root: Path, given: Mapping[str, Video] | None = None, folds: list[Fold] | None = None) -> Path:
    """Writes a data set; by default the videos of one person are the test."""
    videos = dict(given or {f"v{i}": video(i, steps=4 + i, objects=1 + i % 3) for i in range(8)})
    known = meta(len(videos))
    cuts = folds or [
        Fold(
            f"without {who}",
            *(tuple(n for n in videos if (known.videos[n]["subject"] == who) == held) for held in (0, 1)),
        )
        for who in "ab"
    ]
    write(root, known, cuts, videos)
    return root


def released(videos: int = 8, segments: int = 5, objects: int = 3) -> dict[str, np.ndarray]:
    """Random ordinals as the segment features of CAD-120 are released: the people 1, 3, 4, 5 in turn."""
    draw = rng.numpy(0, "released")
    lengths, counts = draw.integers(3, segments + 1, videos), draw.integers(1, objects + 1, videos)
    there = np.arange(segments) < lengths[:, None]
    seen = there[:, :, None] & (np.arange(objects) < counts[:, None])[:, None]

    sizes = {"v": videos, "t": segments, "o": objects}
    levels: dict[str, np.ndarray] = {
        name: draw.integers(0, LEVELS + 1, a.shape(sizes)).astype(a.dtype) for name, a in ARRAYS.items() if a.width
    }
    return {
        **levels,
        "has_temp": there & (np.arange(segments) > 0),
        "seg_mask": there,
        "obj_mask": seen,
        "y_sub": np.where(there, draw.integers(0, 10, there.shape), -1).astype(np.int8),
        "y_aff": np.where(seen, draw.integers(0, 12, seen.shape), -1).astype(np.int8),
        "frame_start": np.broadcast_to(np.arange(segments) * 10, there.shape).astype(np.int32),
        "frame_end": np.broadcast_to(np.arange(segments) * 10 + 9, there.shape).astype(np.int32),
        "video_id": np.array([f"{i:010d}" for i in range(videos)]),
        "subject": np.array([(1, 3, 4, 5)[i % 4] for i in range(videos)], np.int8),
        "activity": np.array([i // 4 % 10 for i in range(videos)], np.int8),
        "activity_names": np.array([f"activity {i}" for i in range(10)]),
        "sub_names": np.array([f"sub {i}" for i in range(10)]),
        "aff_names": np.array([f"aff {i}" for i in range(12)]),
    }


def write_released(root: Path, **changes: np.ndarray) -> Path:
    """Writes :func:`released` as the archive that the converter reads."""
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "cad120_segments.npz", **{**released(), **changes})  # type: ignore[arg-type]
    return root


NET = {"_target_": "tasks.hoi.models.ContextNet", "width": 8, "heads": 2, "layers": 1, "dropout": 0.0}
TAPS = {"local": "local", "local.attention": "graphs[-1]#1", "context": "context", "pooled": "pooled"}


def task(cache: Path, given: Mapping[str, Any] | None = None, **options: Any) -> HOI:
    """The task of ``conf/`` on a few made-up videos."""
    spec = config.load(["task=hoi", "preset=smoke"])
    few = {"kitchen": KITCHEN, "train": None, "test": None, "labels": 1.0, "batch_size": 4}
    made = {k: v for k, v in spec["task"].items() if k not in ("name", "_target_")}
    return HOI(data={**spec["data"], **few, **(given or {})}, store=Store(cache), **{**made, **options})


def as_text(held: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The text files that segment features are released as, by name."""

    def bits(values: np.ndarray) -> str:
        levels = 10 - values.reshape(-1, 1).astype(int)
        ones = (np.arange(10) >= 10 - levels).astype(int).ravel()
        return " ".join(f"{number}:{bit}" for number, bit in enumerate(ones, start=1))

    files = {}
    for row, name in enumerate(held["video_id"]):
        steps = int(held["seg_mask"][row].sum())
        for step in range(steps):
            things = np.flatnonzero(held["obj_mask"][row, step])
            sub, affs = held["y_sub"][row, step] + 1, held["y_aff"][row, step] + 1
            pairs = [(a, b) for a in things for b in things if a != b]
            lines = [f"{len(things)} {len(pairs)} {len(things)} 12 10 {step + 1}"]
            lines += [f"{affs[n]} {n + 1} {bits(held['node_o'][row, step, n])}" for n in things]
            lines += [f"{sub} 1 {bits(held['node_h'][row, step])}"]
            lines += [f"{affs[a]} {affs[b]} {a + 1} {b + 1} {bits(held['edge_oo'][row, step, a, b])}" for a, b in pairs]
            lines += [f"{affs[n]} {sub} {n + 1} {bits(held['edge_ho'][row, step, n])}" for n in things]
            files[f"{name}_{step + 1}.txt"] = "\n".join(lines) + "\n"
            if step:
                lines = [f"{len(things)} 1 {step} {step + 1}"]
                lines += [f"1 1 {n + 1} {bits(held['temp_o'][row, step, n])}" for n in things]
                lines += [f"1 1 1 {bits(held['temp_h'][row, step])}"]
                files[f"{name}_{step}_{step + 1}.txt"] = "\n".join(lines) + "\n"
    return files


def write_text(root: Path, files: Mapping[str, str], link: str | None = None) -> Path:
    """Writes text files as the archive that the converter reads, with ``link`` a link of that name in it."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "raw.tar.xz", "w:xz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"raw/features/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        if link is not None:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return root
