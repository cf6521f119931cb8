"""Evaluates KITTI result files: ``python -m tasks.pointcloud.evaluate GT_DIR DET_DIR [--json] [--split FILE]``.

Both folders hold one text file per frame (``000123.txt``), labels of 15 fields in the first, detections of 16 (the
last is the score) in the second.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from kdbench.base.files import listed
from kdbench.base.terminal import terminal
from kdbench.errors import KDBenchError
from tasks.pointcloud.kitti import MIN_HEIGHT, Objects, Oddities, read_frames, read_objects
from tasks.pointcloud.kitti_ap import (
    CLASSES,
    DIFFICULTIES,
    INTERPOLATIONS,
    METRICS,
    Result,
    evaluate,
    mean_ap,
    valid_counts,
)


def read_folders(
    gt_dir: Path, det_dir: Path, split: Path | None = None, odd: Oddities | None = None
) -> tuple[list[Objects], list[Objects], list[str]]:
    """Reads labels and detections of the frames of ``split``, by default of all that have a label.

    ``odd`` takes note of rows that can hardly be meant.

    Returns:
        Labels, detections, and the frames without a detection file, which count as empty.

    Raises:
        KDBenchError: A folder without text files, a frame without label, or a malformed line.
    """
    labelled, detected = _frames(gt_dir, "labels"), _frames(det_dir, "detections")
    if split is None:
        frames = sorted(labelled)
        if detected - labelled:
            stray = min(detected - labelled)
            raise KDBenchError(
                f"{det_dir / stray}.txt has no ground truth {gt_dir / stray}.txt; use --split for a part"
            )
    else:
        frames = read_frames(split)
        unknown = next((frame for frame in frames if frame not in labelled), None)
        if unknown is not None:
            raise KDBenchError(f"{split} names frame {unknown!r}, but there is no {gt_dir / unknown}.txt")
    missing = [frame for frame in frames if frame not in detected]
    ground_truth = [read_objects(gt_dir / f"{frame}.txt", odd=odd) for frame in frames]
    detections = [
        read_objects(det_dir / f"{frame}.txt", True, odd) if frame in detected else Objects.empty(scored=True)
        for frame in frames
    ]
    return ground_truth, detections, missing


def _frames(folder: Path, what: str) -> set[str]:
    if not folder.is_dir():
        raise KDBenchError(f"{folder} is not a folder; expected {what} such as {folder / '000123.txt'}")
    frames = {Path(name).stem for name in listed(folder) if name.endswith(".txt")}
    if not frames:
        raise KDBenchError(f"{folder} holds no .txt file; expected {what} such as {folder / '000123.txt'}")
    return frames


def unscored(ground_truth: Sequence[Objects], detections: Sequence[Objects]) -> list[str]:
    """Says of which classes KITTI's rules leave nothing to score, and why."""
    notes = []
    for name in CLASSES:
        labels, found = (_heights(frames, name) for frames in (ground_truth, detections))
        if len(labels) and not valid_counts(ground_truth, [name])[name]["hard"]:
            why = _low(labels) or "is too occluded or truncated"
            notes.append(f"no {name} counts, so that it has no AP: every one of {len(labels)} labels {why}")
        if len(found) and (low := _low(np.abs(found))):
            ignored = "which KITTI's rules ignore, so that AP is 0: project the boxes into the image"
            notes.append(f"no detected {name} counts: every one of {len(found)} {low}, {ignored}")
    return notes


def _heights(frames: Sequence[Objects], name: str) -> np.ndarray:
    """Returns the heights of the 2-D boxes of a class, pixels."""
    boxes = [frame.bbox[np.char.lower(frame.types) == name.lower()] for frame in frames if len(frame)]
    joined = np.concatenate([np.empty((0, 4)), *boxes])
    return joined[:, 3] - joined[:, 1]


def _low(heights: np.ndarray) -> str:
    least = min(MIN_HEIGHT)
    if (heights > least).any():
        return ""
    return f"has a 2-D box lower than {least:g} px" if heights.any() else "has no 2-D box"


def to_json(result: Result) -> str:
    """The official figures, R40 and R11, in percent; null where a class has no valid ground truth."""
    official = {
        name: {
            metric: {
                interpolation: {
                    level: None if math.isnan(value) else value
                    for level, value in by_metric[metric][interpolation].items()
                }
                for interpolation in ("R40", "R11")
            }
            for metric in METRICS
        }
        for name, by_metric in result.items()
    }
    return json.dumps(official, indent=2, allow_nan=False)


def to_table(result: Result, counts: dict[str, dict[str, int]]) -> Table:
    """All figures, and how many ground truths they rest on."""
    table = Table("class", "overlap", "AP", title="KITTI average precision (%)")
    for level in DIFFICULTIES:
        table.add_column(level, justify="right")
    for name, by_metric in result.items():
        table.add_row(name, "", "objects", *(str(counts[name][level]) for level in DIFFICULTIES))
        for metric in METRICS:
            for interpolation in INTERPOLATIONS:
                values = by_metric[metric][interpolation]
                table.add_row("", metric, interpolation, *(_cell(values[level]) for level in DIFFICULTIES))
        table.add_section()
    for metric in METRICS:
        table.add_row("mean", metric, "R40", *(_cell(mean_ap(result, metric, "R40", level)) for level in DIFFICULTIES))
    return table


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.pointcloud.evaluate",
        description="KITTI 2-D, BEV and 3-D average precision and orientation (AOS).",
    )
    parser.add_argument("gt_dir", type=Path, metavar="GT_DIR", help="labels, one 000123.txt per frame")
    parser.add_argument("det_dir", type=Path, metavar="DET_DIR", help="detections with score, one 000123.txt per frame")
    parser.add_argument("--json", action="store_true", help="print R40 and R11 as JSON and nothing else")
    parser.add_argument("--split", type=Path, metavar="FILE", help="evaluate only the frames that FILE lists")
    options = parser.parse_args(argv)
    odd = Oddities()
    try:
        ground_truth, detections, missing = read_folders(options.gt_dir, options.det_dir, options.split, odd)
    except KDBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if missing:
        named = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        frames = f"{len(missing)} of {len(ground_truth)} frames"
        print(f"note: {frames} have no detection file and count as empty: {named}", file=sys.stderr)
    for line in odd.lines():
        print(f"warning: {line}", file=sys.stderr)
    for line in unscored(ground_truth, detections):
        print(f"note: {line}", file=sys.stderr)
    result = evaluate(ground_truth, detections)
    if options.json:
        print(to_json(result))
    else:
        counts = valid_counts(ground_truth)
        console = terminal()
        console.print(to_table(result, counts))
        if any(0 < n < 41 for by_level in counts.values() for n in by_level.values()):
            console.print("With n < 41 objects, R40 cannot exceed 100 (n - 1) / 40; 'all' has no such limit.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
