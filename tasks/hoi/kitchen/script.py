"""What people do: ten activities as scripts of primitives, drawn anew for each video.

The activities and labels are those of CAD-120 (Koppula, Gupta, Saxena, IJRR 2013), with its median durations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SUB_ACTIVITIES = (
    "reaching", "moving", "pouring", "eating", "drinking", "opening", "placing", "closing", "null", "cleaning",
)  # fmt: skip
AFFORDANCES = (
    "movable", "stationary", "reachable", "pourable", "pourto", "containable", "drinkable", "openable", "placeable",
    "closeable", "cleanable", "cleaner",
)  # fmt: skip
CATEGORIES = ("unknown", "cup", "bowl", "plate", "box", "book", "carton", "cereal", "jar", "cabinet", "cloth", "food")

#: Seconds that a step takes: median and spread of its logarithm.
DURATIONS = {
    "reach": (1.1, 0.35), "move": (1.6, 0.4), "hold": (1.3, 0.3), "pour": (2.7, 0.25), "eat": (1.3, 0.35),
    "drink": (1.6, 0.3), "open": (2.4, 0.25), "close": (2.4, 0.25), "place": (1.2, 0.25), "retreat": (1.0, 0.3),
    "idle": (0.7, 0.4), "clean": (4.5, 0.3),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One primitive.

    Attributes:
        kind: Key of :data:`DURATIONS`.
        target: Object that the hand goes to or acts on; the carried one goes where ``onto`` says.
        onto: Object above which a carried one is brought, poured, wiped or put; None for a free spot, or the head.
        head: Whether a carried object is brought to the head.
    """

    kind: str
    target: int
    onto: int | None = None
    head: bool = False


@dataclass(frozen=True)
class Script:
    """What happens in a video.

    Attributes:
        activity: Its name.
        objects: Category of each object that takes part.
        steps: Them, in order.
        stacked: Object on which each one lies at the start, by object.
        inside: Objects that are in the cabinet at the start.
    """

    activity: str
    objects: tuple[str, ...]
    steps: tuple[Step, ...]
    stacked: dict[int, int]
    inside: tuple[int, ...] = ()


def carry(target: int, onto: int | None = None, hold: bool = False) -> list[Step]:
    """Reaches for an object, moves it above a place and puts it there; with ``hold`` it stops in the air before."""
    held = [Step("hold", target, onto)] if hold else []
    return [Step("reach", target), Step("move", target, onto), *held, Step("place", target, onto)]


def rest(draw: np.random.Generator, likely: float = 1.0) -> list[Step]:
    """Takes the hand back, with a probability, and waits, or not."""
    if draw.random() >= likely:
        return []
    return [Step("retreat", 0), *([Step("idle", 0)] if draw.random() < 0.5 else [])]


def _arranging(draw: np.random.Generator) -> Script:
    target = str(draw.choice(["box", "book", "cup", "bowl", "cereal"]))
    return Script("arranging objects", (target,), (*carry(0, hold=draw.random() < 0.3), *rest(draw)), {})


def _picking(draw: np.random.Generator) -> Script:
    target = str(draw.choice(["box", "book", "cup", "plate"]))
    steps = [Step("reach", 0), Step("move", 0), *([Step("hold", 0)] if draw.random() < 0.5 else [])]
    return Script("picking objects", (target,), tuple(steps), {})


def _stacking(draw: np.random.Generator) -> Script:
    kind, count = str(draw.choice(["box", "bowl", "plate", "book"])), int(draw.integers(3, 5))
    steps: list[Step] = []
    for number in range(1, count):
        steps += [*carry(number, number - 1, draw.random() < 0.2), *rest(draw, 0.4)]
    return Script("stacking objects", (kind,) * count, (*steps, *rest(draw)), {})


def _unstacking(draw: np.random.Generator) -> Script:
    kind, count = str(draw.choice(["box", "bowl", "plate", "book"])), int(draw.integers(3, 5))
    steps: list[Step] = []
    for number in range(count - 1, 0, -1):
        steps += [*carry(number, None, draw.random() < 0.2), *rest(draw, 0.4)]
    return Script("unstacking objects", (kind,) * count, (*steps, *rest(draw)), {n: n - 1 for n in range(1, count)})


def _cleaning(draw: np.random.Generator) -> Script:
    wiped = [Step("reach", 1), Step("move", 1, 0), Step("clean", 1, 0), Step("move", 1), Step("place", 1)]
    return Script("cleaning objects", ("cabinet", "cloth"), _cabinet(draw, wiped), {})


def _microwaving(draw: np.random.Generator) -> Script:
    target = str(draw.choice(["box", "cup", "bowl", "food"]))
    return Script("microwaving food", ("cabinet", target), _cabinet(draw, carry(1, 0)), {})


def _taking_food(draw: np.random.Generator) -> Script:
    target = str(draw.choice(["food", "carton", "box"]))
    return Script("taking food", ("cabinet", target), _cabinet(draw, carry(1)), {}, inside=(1,))


def _cabinet(draw: np.random.Generator, within: Sequence[Step]) -> tuple[Step, ...]:
    opened = [Step("reach", 0), Step("open", 0), *rest(draw, 0.5)]
    closed = [*rest(draw, 0.5), Step("reach", 0), Step("close", 0), *rest(draw)]
    return (*opened, *within, *closed)


def _medicine(draw: np.random.Generator) -> Script:
    steps = [Step("reach", 0), Step("open", 0), *rest(draw, 0.5)]
    if draw.random() < 0.5:
        steps += [Step("reach", 0), Step("close", 0), *rest(draw, 0.5)]
    steps += [Step("reach", 1), Step("move", 1, head=True), Step("drink", 1), Step("move", 1), Step("place", 1)]
    return Script("taking medicine", ("jar", "cup"), (*steps, *rest(draw)), {})


def _cereal(draw: np.random.Generator) -> Script:
    steps: list[Step] = []
    for number in (1, 2):
        held = [Step("hold", number, 0)] if draw.random() < 0.4 else []
        steps += [Step("reach", number), Step("move", number, 0), *held, Step("pour", number, 0)]
        steps += [Step("move", number), Step("place", number), *rest(draw, 0.4)]
    return Script("making cereal", ("bowl", "carton", "cereal"), (*steps, *rest(draw)), {})


def _meal(draw: np.random.Generator) -> Script:
    steps: list[Step] = []
    for _ in range(int(draw.integers(2, 4))):
        target, act = (0, "eat") if draw.random() < 0.6 else (1, "drink")
        steps += [Step("reach", target), Step("move", target, head=True), Step(act, target)]
        steps += [Step("move", target), Step("place", target), *rest(draw, 0.3)]
    return Script("having meal", ("food", "cup"), (*steps, *rest(draw)), {})


ACTIVITIES: tuple[Callable[[np.random.Generator], Script], ...] = (
    _arranging, _cleaning, _meal, _cereal, _microwaving, _picking, _stacking, _taking_food, _medicine, _unstacking,
)  # fmt: skip
