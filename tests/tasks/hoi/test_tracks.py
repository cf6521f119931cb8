"""Tracks of detections: who is who from frame to frame."""

from __future__ import annotations

import numpy as np

from tasks.hoi.tracks import follow


def box(x: float, y: float = 0.0, side: float = 10.0) -> list[float]:
    return [x, y, x + side, y + side]


def run(*frames: list[tuple[list[float], int]], **options: float) -> list[list[int]]:
    boxes = [np.array([b for b, _ in frame], float).reshape(-1, 4) for frame in frames]
    labels = [np.array([kind for _, kind in frame], np.int64) for frame in frames]
    return [tracks.tolist() for tracks in follow(boxes, labels, **options)]  # type: ignore[arg-type]


def test_things_that_move_keep_their_track_whatever_their_order():
    frames = [[(box(2 * t), 0), (box(40 - 2 * t), 0)][:: 1 if t % 2 else -1] for t in range(8)]
    found = run(*frames)
    assert [own[:: 1 if t % 2 else -1] for t, own in enumerate(found)] == [[1, 0]] * 8


def test_the_sum_of_overlaps_decides_not_the_nearest_first():
    """The first track overlaps the first new box most, but the second track has no other."""
    found = run([(box(0), 0), (box(5), 0)], [(box(1.2), 0), (box(-1.5), 0)])
    assert found == [[0, 1], [1, 0]]


def test_a_track_is_of_one_class_and_ends_after_a_while():
    assert run([(box(0), 0)], [(box(0), 1)]) == [[0], [1]]
    nothing: list[tuple[list[float], int]] = []
    assert run([(box(0), 0)], nothing, nothing, [(box(1), 0)], patience=2)[-1] == [0]
    assert run([(box(0), 0)], nothing, nothing, [(box(1), 0)], patience=1)[-1] == [1]


def test_what_hardly_overlaps_is_another():
    assert run([(box(0), 0)], [(box(6), 0)]) == [[0], [1]]
    assert run([(box(0), 0)], [(box(6), 0)], least=0.2) == [[0], [0]]


def test_frames_without_anything_are_fine():
    assert run([], []) == [[], []]
