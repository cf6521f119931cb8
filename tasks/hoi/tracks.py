"""Which detections of a video are of one person or object: frame by frame, by the overlap of boxes of one class.

Detections are matched to tracks by SciPy's optimal assignment, as SORT does (Bewley et al., ICIP 2016), without its
motion model: frames are near in time, or a track ends. mmdet's own trackers need ``lap`` or ``motmetrics``, which
nothing else here does, and a detector of torchvision has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tasks.hoi.boxes import overlap


def follow(
    boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], least: float = 0.3, patience: int = 5
) -> list[np.ndarray]:
    """Numbers the tracks of a video.

    Args:
        boxes: Of each frame ``(N, 4)`` left, top, right, bottom, in any unit.
        labels: Of each frame ``(N,)`` classes; a track is of one.
        least: Overlap (intersection over union) with its last box from which on a detection may continue a track.
        patience: Frames after which a track that was not seen ends.

    Returns:
        Of each frame the track of each detection, ``(N,)``; tracks are numbered from 0 in the order they begin.
    """
    last, kind, seen = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = []
    for frame, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
        alive = np.flatnonzero(frame - seen <= patience + 1)
        shared = overlap(last[alive, None], own[None].astype(np.float64))
        shared = np.where((kind[alive, None] == classes) & (shared >= least), shared, 0.0)
        rows, columns = linear_sum_assignment(shared, maximize=True)
        kept = shared[rows, columns] > 0
        tracks = np.full(len(own), -1)
        tracks[columns[kept]] = alive[rows[kept]]
        new = np.flatnonzero(tracks < 0)
        tracks[new] = len(last) + np.arange(len(new))
        last = np.concatenate([last, own[new]])
        kind, seen = np.concatenate([kind, classes[new]]), np.concatenate([seen, np.full(len(new), frame)])
        last[tracks], seen[tracks] = own, frame
        found.append(tracks)
    return found
