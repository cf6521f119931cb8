"""Runs an exported detector on scans. NumPy, Pillow and ONNX Runtime alone: it is written beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.script import main

KITTI_IMAGE = (1242, 375)


def read_scan(path: Path, inputs: dict[str, Any]) -> np.ndarray:
    """Reads a scan as the model's evaluation read them: ``(P, 4)`` float32 x, y, z, reflectance.

    One in KITTI's layout (``velodyne/``, ``calib/``, ``image_2/``) is cropped to the camera's view.
    """
    layout = inputs["scan"]
    values = np.fromfile(path, np.dtype(layout["dtype"]).newbyteorder("<")).reshape(-1, layout["columns"])
    points = np.zeros((len(values), 4), dtype=np.float32)
    points[:, :3] = values[:, :3] * layout["unit"] if layout["unit"] != 1 else values[:, :3]
    if layout["columns"] > 3:
        points[:, 3] = values[:, 3] / layout["intensity"] if layout["intensity"] != 1 else values[:, 3]
    folder = path.absolute().parent.parent
    calibration = folder / "calib" / f"{path.stem}.txt"
    if inputs["camera"] and calibration.exists():
        points = points[in_view(points, calibration, image_size(folder / "image_2", path.stem, inputs["image_size"]))]
    low, high = np.array(inputs["point_range"], dtype=np.float32).reshape(2, 3)
    return points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)]


def image_size(folder: Path, name: str, given: tuple[int, int] | None) -> tuple[int, int]:
    """Returns width and height of a scan's image; of an absent one those given, else KITTI's."""
    for path in sorted(folder.glob(f"{name}.*")):
        with Image.open(path) as image:
            return image.size
    return given or KITTI_IMAGE


def in_view(points: np.ndarray, calibration: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns the mask of the points that project into the image."""
    lines = (line.partition(":") for line in calibration.read_text(encoding="utf-8-sig").splitlines())
    named = {name.strip().lower(): values.split() for name, _, values in lines}
    found = {name: np.array(named[name], dtype=np.float64) for name in ("p2", "r0_rect", "tr_velo_to_cam")}
    p2, r0, velo_to_cam = (found[name].reshape(3, -1) for name in ("p2", "r0_rect", "tr_velo_to_cam"))
    transform = (p2 @ np.vstack([r0 @ velo_to_cam, [0, 0, 0, 1]])).astype(np.float32)
    u, v, depth = (points[:, :3] @ transform[:, :3].T + transform[:, 3]).T
    width, height = size
    return (depth > 0) & (u >= 0) & (u < width * depth) & (v >= 0) & (v < height * depth)


def pillarise(points: np.ndarray, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """Sorts points into pillars and describes each by its offsets from the mean and the centre of its own.

    Returns:
        ``points`` (P, columns + 6) and ``cells`` (P,), as the model reads them.
    """
    inputs, (height, width) = facts["inputs"], facts["grid"]
    low, high = np.array(inputs["point_range"]).reshape(2, 3)
    size = np.array([*inputs["pillar"], high[2] - low[2]], dtype=np.float32)
    low = low.astype(np.float32)
    cell = np.floor((points[:, :3] - low) / size)
    inside = ((cell >= 0) & (cell < [width, height, 1])).all(1)
    points, cell = points[inside], cell[inside]
    cells = cell[:, 1].astype(np.int64) * width + cell[:, 0].astype(np.int64)
    if facts["max_points"] is not None:
        order = np.argsort(cells, kind="stable")
        rank = np.empty(len(cells), dtype=np.int64)
        rank[order] = np.arange(len(cells)) - np.searchsorted(cells[order], cells[order])
        kept = rank < facts["max_points"]
        points, cell, cells = points[kept], cell[kept], cells[kept]
    _, pillar, counts = np.unique(cells, return_inverse=True, return_counts=True)
    xyz = points[:, :3]
    sums = [np.bincount(pillar, xyz[:, axis], len(counts)) for axis in range(3)]
    mean = (np.stack(sums, 1) / counts[:, None]).astype(np.float32)
    centre = low + (cell + np.float32(0.5)) * size
    columns = np.concatenate([xyz - centre, points[:, 3:]], 1) if facts["legacy"] else points
    return {"points": np.concatenate([columns, xyz - mean[pillar], xyz - centre], 1), "cells": cells}


def detect(boxes: np.ndarray, scores: np.ndarray, facts: dict[str, Any]) -> list[tuple[int, float, np.ndarray]]:
    """Chooses detections among the boxes (A, 7) of all anchors and their scores (A, classes).

    Returns:
        Class, score and box of each, best first.
    """
    top = np.argsort(-scores.max(1), kind="stable")[: facts["top_k"]]
    rank, label = np.nonzero(scores[top] > facts["score_threshold"])
    score, box = scores[top][rank, label], boxes[top][rank]
    kept: list[int] = []
    for i in np.argsort(-score, kind="stable"):
        if len(kept) < facts["max_keep"] and all(
            label[i] != label[k] or overlap(box[i], box[k]) <= facts["nms"] for k in kept
        ):
            kept.append(int(i))
    return [(int(label[k]), float(score[k]), box[k]) for k in kept]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the intersection over union of two boxes (7,) seen from above."""
    if np.hypot(*(a[:2] - b[:2])) >= (np.hypot(*a[3:5]) + np.hypot(*b[3:5])) / 2:
        return 0.0
    polygon = _corners(a)
    edges = _corners(b)
    for start, end in zip(edges, np.roll(edges, -1, 0), strict=True):  # Sutherland and Hodgman's clipping
        side = (end[0] - start[0]) * (polygon[:, 1] - start[1]) - (end[1] - start[1]) * (polygon[:, 0] - start[0])
        clipped = []
        for p, q, d, e in zip(polygon, np.roll(polygon, -1, 0), side, np.roll(side, -1), strict=True):
            if d >= 0:
                clipped.append(p)
            if d * e < 0:
                clipped.append(p + (q - p) * d / (d - e))
        if len(clipped) < 3:
            return 0.0
        polygon = np.array(clipped)
    x, y = polygon.T
    shared = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return float(shared / (a[3] * a[4] + b[3] * b[4] - shared))


def _corners(box: np.ndarray) -> np.ndarray:
    """Returns the corners (4, 2), counter-clockwise."""
    x, y, _, length, width, _, yaw = box.astype(np.float64)
    unit = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]]) * [length, width]
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    return unit @ turn + [x, y]


def predict(session: Any, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns class, score and box (x, y, z, l, w, h, yaw) of what is found in a scan."""
    points = read_scan(path, facts["inputs"])
    # A detector of another class than PointPillars makes its own features.
    given = pillarise(points, facts) if "cells" in {i.name for i in session.get_inputs()} else {"points": points}
    boxes, scores = session.run(["boxes", "scores"], given)
    found = detect(boxes, scores, facts)
    return {
        "objects": [
            {"class": facts["classes"][label], "score": round(score, 4), "box": [round(float(v), 3) for v in box]}
            for label, score, box in found
        ],
    }


if __name__ == "__main__":
    main(predict, "Detects objects in scans with the exported model; one in KITTI's folders is cropped to its camera.")
