"""A kitchen table on which a person acts, made up: activities of primitives, seen by a noisy sensor.

What is done is not told by the pose alone (a hand that reaches looks like one that comes back), nor by one moment (a
door is opened or closed by the same movement, in a direction of its own; moving becomes placing by what follows;
holding becomes pouring by what is below). Objects lie around that take no part, in another order in every video; every
person has a scale, a speed, a hand and a sensor of his own. Statistics are those of CAD-120: ten activities, 10
sub-activities, 12 affordances, median durations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from kdbench.base import rng
from tasks.hoi.kitchen.script import ACTIVITIES, AFFORDANCES, CATEGORIES, SUB_ACTIVITIES
from tasks.hoi.kitchen.sense import EDGE, HUMAN, OBJECT, sense
from tasks.hoi.kitchen.stage import Style, Take, play
from tasks.hoi.layout import CLIP, Fold, Meta, Video
from tasks.hoi.layout import HUMAN as HUMAN_KIND
from tasks.hoi.layout import OBJECT as OBJECT_KIND

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Kitchen:
    """Options of the made-up data.

    Attributes:
        videos: How many.
        subjects: People; videos are shared out over them and each does every activity.
        folds: Cuts, in each of which as many people are held out.
        rate: Steps a second.
        jitter: Factor on the noise of each person's sensor.
        misses: Share of the steps at which an object is not seen.
        confusion: Probability that an object is taken for another category throughout.
        distractors: Most objects that take no part.
        seed: Of all that is drawn.
    """

    videos: PositiveInt = 320
    subjects: PositiveInt = 12
    folds: PositiveInt = 4
    rate: PositiveFloat = 3.0
    jitter: Annotated[float, Field(ge=0)] = 1.0
    misses: Share = 0.05
    confusion: Share = 0.1
    distractors: NonNegativeInt = 2
    seed: int = 0


def style(options: Kitchen, subject: int) -> Style:
    """Draws how a person moves."""
    draw = rng.numpy(options.seed, "style", subject)
    left = 0.9 if draw.random() < 0.25 else 0.1
    speed = float(np.exp(draw.normal(0, 0.15)))
    scale = float(1 + draw.uniform(-0.15, 0.15))
    return Style(scale, speed, left, float(draw.uniform(0.004, 0.02)) * options.jitter, float(draw.uniform(0.0, 0.02)))


def take(options: Kitchen, number: int) -> Take:
    """Plays a video, before any sensor has seen it."""
    draw = rng.numpy(options.seed, "take", number)
    activity = ACTIVITIES[number // options.subjects % len(ACTIVITIES)]
    own = style(options, number % options.subjects)
    played = play(activity(draw), own, draw, options.rate, options.distractors)
    order = draw.permutation(len(played.categories))
    return Take(
        played.joints,
        played.centres[:, order],
        played.sizes[:, order],
        tuple(played.categories[i] for i in order),
        played.human,
        played.object[:, order],
        played.activity,
    )


def video(options: Kitchen, number: int) -> tuple[str, Video]:
    """Makes a video; also says which activity it is."""
    made, draw = take(options, number), rng.numpy(options.seed, "sense", number)
    jitter = style(options, number % options.subjects).jitter
    return made.activity, sense(made, draw, options.rate, jitter, options.misses, options.confusion)


def make(options: Kitchen) -> tuple[Meta, list[Fold], dict[str, Video]]:
    """Makes all videos and their cuts, by which nobody is in training and in test."""
    names = [f"{number:05d}" for number in range(options.videos)]
    made = [video(options, number) for number in range(options.videos)]
    subjects = [number % options.subjects for number in range(options.videos)]
    known = {
        name: {"subject": str(subject), "activity": activity}
        for name, subject, (activity, _) in zip(names, subjects, made, strict=True)
    }
    meta = Meta(
        name="kitchen",
        mode="frame",
        features={HUMAN_KIND: HUMAN, OBJECT_KIND: OBJECT, "edge": EDGE},
        classes={HUMAN_KIND: SUB_ACTIVITIES, OBJECT_KIND: AFFORDANCES, CLIP: SUB_ACTIVITIES},
        categories=CATEGORIES,
        videos=known,
        units=dict.fromkeys((HUMAN_KIND, OBJECT_KIND, "edge"), "m, m a second"),
        rate=options.rate,
        source="made up by tasks.hoi.kitchen",
    )
    folds = []
    for fold in range(options.folds):
        test = [name for name, subject in zip(names, subjects, strict=True) if subject % options.folds == fold]
        train = [name for name in names if name not in {*test}]
        folds.append(Fold(f"people {fold + 1} of {options.folds}", tuple(train), tuple(test)))
    return meta, folds, {name: found for name, (_, found) in zip(names, made, strict=True)}
