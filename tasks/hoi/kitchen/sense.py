"""What a sensor makes of a take: noisy positions, missed objects, mistaken categories; features of nodes and edges."""

from __future__ import annotations

import numpy as np

from tasks.hoi.kitchen.script import CATEGORIES, SUB_ACTIVITIES
from tasks.hoi.kitchen.stage import HANDS, JOINTS, Take
from tasks.hoi.layout import Video

AXES = ("x", "y", "z")
TORSO = JOINTS.index("torso")
#: Of a person: joints seen from the torso, and how fast the hands go (m a second).
HUMAN = tuple(f"{joint} {axis}" for joint in JOINTS if joint != "torso" for axis in AXES) + tuple(
    f"{JOINTS[hand]} speed {axis}" for hand in HANDS for axis in AXES
)
#: Of an object: middle seen from the torso, extents, speed.
OBJECT = tuple(f"{what} {axis}" for what in ("centre", "size", "speed") for axis in AXES)
#: Of a pair: where the other node is (a person is at the hand nearest to it), how that changes, and whether they touch.
EDGE = (
    *(f"offset {axis}" for axis in AXES),
    "distance", "approach", "relative speed", "touch", "from head", "head approach",
)  # fmt: skip
#: Gap between a hand, or a box, and a box up to which they touch, m.
TOUCH = 0.03


def sense(take: Take, draw: np.random.Generator, rate: float, jitter: float, misses: float, confusion: float) -> Video:
    """Returns the features of a take.

    Args:
        take: What happens.
        draw: Draws errors.
        rate: Steps a second.
        jitter: Standard deviation of positions, m.
        misses: Share of the steps at which an object is not seen.
        confusion: Probability that an object is taken for another category throughout.
    """
    joints = take.joints + draw.normal(0, 1, take.joints.shape) * jitter
    centres = take.centres + draw.normal(0, 1, take.centres.shape) * jitter
    sizes = np.abs(take.sizes + draw.normal(0, 1, take.sizes.shape) * jitter / 2)
    steps, count = centres.shape[:2]
    seen = draw.random((steps, count)) >= misses
    seen[int(draw.integers(steps)), ~seen.any(0)] = True
    category = np.array([CATEGORIES.index(name) for name in take.categories])
    mistaken = draw.random(count) < confusion
    category[mistaken] = draw.integers(1, len(CATEGORIES), int(mistaken.sum()))
    torso = joints[:, TORSO, None]
    body = np.delete(joints - torso, TORSO, 1).reshape(steps, -1)
    speeds = _rate(joints[:, HANDS], rate)
    human = np.concatenate([body, speeds.reshape(steps, -1)], 1)[:, None]
    objects = np.concatenate([centres - torso, sizes, _rate(centres, rate)], 2)
    labels = np.zeros(len(SUB_ACTIVITIES), np.uint8)
    labels[np.unique(take.human)] = 1
    frames = np.arange(steps, dtype=np.int32)
    return Video(
        human=human.astype(np.float16),
        object=objects.astype(np.float16),
        edge=edges(joints, centres, sizes, rate).astype(np.float16),
        category=category.astype(np.uint8),
        mask=np.concatenate([np.ones((steps, 1), bool), seen], 1),
        human_label=take.human[:, None].astype(np.int16),
        object_label=take.object.astype(np.int16),
        clip_label=labels,
        time=np.stack([frames, frames], 1),
    )


def edges(joints: np.ndarray, centres: np.ndarray, sizes: np.ndarray, rate: float) -> np.ndarray:
    """Returns what every node sees of every other, ``(T, 1 + N, 1 + N, 9)``; of itself zeros.

    Args:
        joints: ``(T, 9, 3)``.
        centres: ``(T, N, 3)``.
        sizes: ``(T, N, 3)``.
        rate: Steps a second.
    """
    steps, count = centres.shape[:2]
    found = np.zeros((steps, 1 + count, 1 + count, len(EDGE)))
    hands = joints[:, HANDS]
    far = np.linalg.norm(centres[:, :, None] - hands[:, None], axis=3)
    near = far.argmin(2)
    hand = np.take_along_axis(hands[:, None], near[..., None, None], 2)[:, :, 0]
    # A rate is that of one hand: the one that is nearest now.
    before = np.concatenate([far[:1], far[:-1]])
    towards = (np.take_along_axis(before, near[..., None], 2)[..., 0] - far.min(2)) * rate
    own = np.take_along_axis(_rate(hands, rate)[:, None], near[..., None, None], 2)[:, :, 0]
    moves = _rate(centres, rate)
    head = np.linalg.norm(centres - joints[:, :1], axis=2)
    of_hand = np.concatenate(
        [
            centres - hand,
            far.min(2)[..., None],
            towards[..., None],
            np.linalg.norm(moves - own, axis=2)[..., None],
            (_gap(hand, np.zeros(3), centres, sizes) < TOUCH)[..., None],
            head[..., None],
            -_rate(head[..., None], rate),
        ],
        2,
    )
    found[:, 0, 1:] = of_hand
    found[:, 1:, 0] = of_hand * np.where(np.arange(len(EDGE)) < len(AXES), -1, 1)
    offset = centres[:, None] - centres[:, :, None]
    distance = np.linalg.norm(offset, axis=3)
    touch = _gap(centres[:, :, None], sizes[:, :, None], centres[:, None], sizes[:, None]) < TOUCH
    between = [
        offset,
        distance[..., None],
        -_rate(distance[..., None], rate),
        np.linalg.norm(moves[:, None] - moves[:, :, None], axis=3)[..., None],
        touch[..., None],
        np.broadcast_to(head[:, None, :, None], (*distance.shape, 1)),
        np.zeros((*distance.shape, 1)),
    ]
    found[:, 1:, 1:] = np.concatenate(between, 3) * ~np.eye(count, dtype=bool)[:, :, None]
    return found


def _gap(first: np.ndarray, size: np.ndarray, second: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns how far boxes are apart, by their middles and extents ``(..., 3)``; 0 where they meet."""
    apart = np.maximum(np.abs(first - second) - (size + other) / 2, 0)
    found: np.ndarray = np.linalg.norm(apart, axis=-1)
    return found


def _rate(values: np.ndarray, rate: float) -> np.ndarray:
    """Returns the change since the step before, a second; none at the first."""
    return np.diff(values, axis=0, prepend=values[:1]) * rate
