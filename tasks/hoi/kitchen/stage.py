"""Plays a script: where joints and objects are at every step, and what is then done by and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tasks.hoi.kitchen.script import AFFORDANCES, DURATIONS, SUB_ACTIVITIES, Script, Step

JOINTS = (
    "head", "neck", "torso", "left shoulder", "right shoulder", "left elbow", "right elbow", "left hand", "right hand",
)  # fmt: skip
HANDS = (7, 8)
#: Width, depth and height of an object by category, m.
SIZES = {
    "cup": (0.08, 0.08, 0.10), "bowl": (0.15, 0.15, 0.07), "plate": (0.20, 0.20, 0.03), "box": (0.13, 0.10, 0.09),
    "book": (0.20, 0.14, 0.04), "carton": (0.09, 0.09, 0.22), "cereal": (0.16, 0.07, 0.24), "jar": (0.07, 0.07, 0.13),
    "cabinet": (0.34, 0.26, 0.28), "cloth": (0.14, 0.12, 0.04), "food": (0.09, 0.09, 0.05),
}  # fmt: skip
#: Height above what is below, m, to which an object is brought before it is put down or poured.
ABOVE = 0.16
#: Distance of a carried object's middle from the hand, m.
GRASP = np.array([0.0, 0.02, -0.02])
HEAD = np.array([0.0, 0.06, 0.46])
#: Radius of the arc of a handle and of the turn of a lid, m.
DOOR, LID = 0.20, 0.035
#: Width of wiping and of the waver of pouring, m; strokes a second of both.
WIPE, WAVER, STROKES = 0.09, 0.015, 0.83


class Style(NamedTuple):
    """How a person moves.

    Attributes:
        scale: Of the arms.
        speed: Divides durations.
        left: Probability of the left hand.
        jitter: Standard deviation of what a sensor adds to positions, m.
        lean: Of the torso, m.
    """

    scale: float
    speed: float
    left: float
    jitter: float
    lean: float


@dataclass(frozen=True)
class Take:
    """A script as it was played, without any error of a sensor.

    Attributes:
        joints: ``(T, 9, 3)`` positions, m; x to the right, y away from the person, z up from the table.
        centres: ``(T, N, 3)`` middles of the objects, m.
        sizes: ``(T, N, 3)`` their extents, m; that of a tilted object is another.
        categories: Name of the category of each object.
        human: ``(T,)`` sub-activity at each step.
        object: ``(T, N)`` affordance of each object at each step.
        activity: Its name.
    """

    joints: np.ndarray
    centres: np.ndarray
    sizes: np.ndarray
    categories: tuple[str, ...]
    human: np.ndarray
    object: np.ndarray
    activity: str


def play(script: Script, style: Style, draw: np.random.Generator, rate: float, distractors: int) -> Take:
    """Plays a script.

    Args:
        script: What happens.
        style: Of the person.
        draw: Draws places, durations and the hand.
        rate: Steps a second.
        distractors: Most objects that lie around.
    """
    return _Stage(script, style, draw, rate, distractors).take()


def smooth(steps: int) -> np.ndarray:
    """Returns the shares of a way after each of its steps, with the least jerk (Flash, Hogan, 1985), ``(steps, 1)``."""
    done = np.arange(1, steps + 1)[:, None] / steps
    return done**3 * (10 - 15 * done + 6 * done**2)


class _Stage:
    """The state of the scene while it is played, and what was recorded of it."""

    def __init__(self, script: Script, style: Style, draw: np.random.Generator, rate: float, distractors: int) -> None:
        self.script, self.style, self.draw, self.rate = script, style, draw, rate
        others = draw.choice(["cup", "bowl", "box", "book", "plate", "jar"], int(draw.integers(0, distractors + 1)))
        self.categories = (*script.objects, *map(str, others))
        self.size = np.array([SIZES[name] for name in self.categories])
        self.centre = self._laid_out()
        self.hand = int(draw.random() >= style.left)  # 0 is the left one
        side = np.array([-1.0, 1.0])[:, None] * np.array([0.2, 0.0, 0.0])
        self.rest = side + np.array([0.0, 0.14, 0.04])
        self.rest += draw.normal(0, 0.02, (2, 3))
        self.at = self.rest.copy()
        #: Way in which a door opens.
        self.turn = 1.0 if draw.random() < 0.5 else -1.0
        self.door = 0.0
        self.carried: int | None = None
        self.recorded: list[tuple[np.ndarray, np.ndarray, np.ndarray, str, dict[int, str]]] = []

    def take(self) -> Take:
        """Plays all steps."""
        self._record(np.repeat(self.at[self.hand][None], self._steps("idle"), 0), "null", {})
        for step in self.script.steps:
            getattr(self, f"_{step.kind}")(step)
        hands, centres, tilts = (np.concatenate([entry[i] for entry in self.recorded]) for i in range(3))
        human, affordances = [], []
        for positions, _, _, said, used in self.recorded:
            human += [SUB_ACTIVITIES.index(said)] * len(positions)
            row = [AFFORDANCES.index(used.get(n, "stationary")) for n in range(len(self.categories))]
            affordances += [row] * len(positions)
        return Take(
            self._body(hands),
            centres,
            self._extents(tilts),
            self.categories,
            np.array(human),
            np.array(affordances),
            self.script.activity,
        )

    # ---- the scene --------------------------------------------------------------------------------------------

    def _laid_out(self) -> np.ndarray:
        """Returns where objects lie at first, ``(N, 3)``: on the table, on one another, or in the cabinet."""
        centre = np.zeros((len(self.categories), 3))
        for number, name in enumerate(self.categories):
            if number in self.script.stacked:
                below = self.script.stacked[number]
                centre[number] = centre[below] + [0, 0, (self.size[below, 2] + self.size[number, 2]) / 2]
            elif number in self.script.inside:
                centre[number] = centre[0] + [0, -0.05, (self.size[number, 2] - self.size[0, 2]) / 2 + 0.02]
            else:
                centre[number] = self._spot(centre[:number], self.size[number], 0.52 if name == "cabinet" else None)
        return centre

    def _spot(self, taken: np.ndarray, size: np.ndarray, depth: float | None = None) -> np.ndarray:
        """Returns a free place on the table, the freest of some."""
        tried = np.stack([self.draw.uniform(-0.42, 0.42, 16), self.draw.uniform(0.24, 0.5, 16)], 1)
        if depth is not None:
            tried[:, 1] = depth
        apart = np.linalg.norm(tried[:, None] - taken[None, :, :2], axis=2).min(1) if len(taken) else np.zeros(16)
        return np.array([*tried[int(np.minimum(apart, 0.25).argmax())], size[2] / 2])

    def _steps(self, kind: str) -> int:
        """Draws how many steps a primitive takes, two at least."""
        median, spread = DURATIONS[kind]
        seconds = median * np.exp(self.draw.normal(0, spread)) / self.style.speed
        return max(2, round(float(seconds * self.rate)))

    def _record(self, hand: np.ndarray, label: str, used: dict[int, str], tilt: np.ndarray | None = None) -> None:
        """Adds steps in which the hand is at ``(t, 3)``, with what it carries."""
        centres = np.repeat(self.centre[None], len(hand), 0)
        tilts = np.zeros(centres.shape[:2])
        if self.carried is not None:
            centres[:, self.carried] = hand + GRASP
            if tilt is not None:
                tilts[:, self.carried] = tilt
        self.centre = centres[-1].copy()
        self.at[self.hand] = hand[-1]
        self.recorded.append((hand, centres, tilts, label, used))

    def _go(self, end: np.ndarray, steps: int, arc: float = 0.0) -> np.ndarray:
        """Returns the way of the hand to ``end``, ``(steps, 3)``."""
        share = smooth(steps)
        start = self.at[self.hand]
        way: np.ndarray = start + share * (end - start)
        way[:, 2] += arc * 4 * (share * (1 - share))[:, 0]
        return way

    def _handle(self) -> np.ndarray:
        """Returns where the handle of the door is, which goes around the middle of the cabinet's front."""
        angle = self.turn * (self.door - 0.5) * 1.6
        front = self.centre[0] - [0, self.size[0, 1] / 2 + 0.02, 0]
        return front + DOOR * np.array([np.sin(angle), -np.cos(angle) + 0.7, 0.0])

    def _grip(self, target: int) -> np.ndarray:
        """Returns where the hand takes hold of an object: a door at its handle, a jar at its lid."""
        name = self.categories[target]
        if name == "cabinet":
            return self._handle()
        if name == "jar":
            return self.centre[target] + [LID, 0, self.size[target, 2] / 2 + 0.02]
        grip: np.ndarray = self.centre[target] - GRASP
        return grip

    def _top(self, target: int, onto: int | None) -> np.ndarray:
        """Returns where an object comes to lie, by its middle: on another one, in the cabinet, or on the table."""
        own = self.size[target]
        if onto is None:
            free = [n for n in range(len(self.categories)) if n != target]
            return self._spot(self.centre[free], own)
        below = self.centre[onto]
        if self.categories[onto] == "cabinet":
            return below + [0, -0.05, (own[2] - self.size[onto, 2]) / 2 + 0.02]
        return below + [0, 0, (self.size[onto, 2] + own[2]) / 2]

    # ---- primitives -------------------------------------------------------------------------------------------

    def _reach(self, step: Step) -> None:
        way = self._go(self._grip(step.target), self._steps("reach"), 0.04)
        self._record(way, "reaching", {step.target: "reachable"})

    def _move(self, step: Step) -> None:
        self.carried = step.target
        if step.head:
            end = self._head() - GRASP
        else:
            self.goal = self._top(step.target, step.onto)
            end = self.goal - GRASP + [0, 0, ABOVE]
        self._record(self._go(end, self._steps("move"), 0.06), "moving", {step.target: "movable"})

    def _hold(self, step: Step) -> None:
        way = np.repeat(self.at[self.hand][None], self._steps("hold"), 0)
        self._record(way, "moving", {step.target: "movable"})

    def _place(self, step: Step) -> None:
        end = self.at[self.hand] - [0, 0, ABOVE]
        used = {step.target: "placeable"}
        if step.onto is not None and self.categories[step.onto] == "cabinet":
            used[step.onto] = "containable"
        self._record(self._go(end, self._steps("place")), "placing", used)
        self.carried = None

    def _pour(self, step: Step) -> None:
        assert step.onto is not None
        steps = self._steps("pour")
        done = np.arange(1, steps + 1) / steps
        way = np.repeat(self.at[self.hand][None], steps, 0)
        way[:, 0] += WAVER * np.sin(2 * np.pi * STROKES * done * steps / self.rate)
        self._record(way, "pouring", {step.target: "pourable", step.onto: "pourto"}, 1.8 * np.sin(np.pi * done) ** 0.5)
        self.at[self.hand] = way[-1]

    def _eat(self, step: Step) -> None:
        self._record(np.repeat(self.at[self.hand][None], self._steps("eat"), 0), "eating", {step.target: "movable"})

    def _drink(self, step: Step) -> None:
        steps = self._steps("drink")
        tilt = 0.9 * np.sin(np.pi * np.arange(1, steps + 1) / steps)
        self._record(np.repeat(self.at[self.hand][None], steps, 0), "drinking", {step.target: "drinkable"}, tilt)

    def _open(self, step: Step) -> None:
        self._turned(step.target, "open", "opening", "openable")

    def _close(self, step: Step) -> None:
        self._turned(step.target, "close", "closing", "closeable")

    def _turned(self, target: int, kind: str, label: str, affordance: str) -> None:
        """Moves the door along its arc, or turns a lid to and fro, which tells nothing of the direction."""
        steps = self._steps(kind)
        if self.categories[target] == "cabinet":
            start, ways = self.door, []
            for share in smooth(steps)[:, 0]:
                self.door = start + share * (1 - 2 * start)
                ways.append(self._handle())
            way = np.array(ways)
        else:
            angle = np.arange(1, steps + 1) * 2 * np.pi * 0.4 / self.rate * 2
            middle = self._grip(target) - [LID, 0, 0]
            way = middle + LID * np.stack([np.cos(angle), np.sin(angle), np.zeros(steps)], 1)
        self._record(way, label, {target: affordance})

    def _clean(self, step: Step) -> None:
        assert step.onto is not None
        steps = self._steps("clean")
        seconds = np.arange(1, steps + 1) / self.rate
        way = np.repeat(self.at[self.hand][None], steps, 0)
        way[:, 0] += WIPE * np.sin(2 * np.pi * STROKES * seconds)
        self._record(way, "cleaning", {step.target: "cleaner", step.onto: "cleanable"})

    def _retreat(self, step: Step) -> None:
        self._record(self._go(self.rest[self.hand], self._steps("retreat"), 0.03), "null", {})

    def _idle(self, step: Step) -> None:
        self._record(np.repeat(self.at[self.hand][None], self._steps("idle"), 0), "null", {})

    # ---- what is seen -----------------------------------------------------------------------------------------

    def _head(self) -> np.ndarray:
        """Returns the mouth."""
        return HEAD * [1, 1, self.style.scale] + [0, 0.08, -0.06]

    def _body(self, hand: np.ndarray) -> np.ndarray:
        """Returns all joints of a body whose active hand is at ``(T, 3)``."""
        steps, scale = len(hand), self.style.scale
        sway = self.style.lean * np.sin(np.arange(steps)[:, None] * [0.21, 0.17, 0.0] / self.rate + self.turn)
        hands = np.repeat(self.rest[None], steps, 0)
        hands[:, self.hand] = hand
        torso = np.array([0.0, -0.05, 0.12]) * [1, 1, scale] + sway
        shoulders = [torso + np.array([x * scale, 0.0, 0.2 * scale]) for x in (-0.18, 0.18)]
        elbows = [(shoulders[i] + hands[:, i]) / 2 - [0, 0.02, 0.06 * scale] for i in range(2)]
        head = HEAD * [1, 1, scale] + 1.3 * sway
        neck = torso + [0, 0, 0.24 * scale]
        return np.stack([head, neck, torso, *shoulders, *elbows, hands[:, 0], hands[:, 1]], 1)

    def _extents(self, tilts: np.ndarray) -> np.ndarray:
        """Returns the extents of boxes around objects that are tilted to the side by ``(T, N)`` rad."""
        wide, deep, tall = np.broadcast_to(self.size, (*tilts.shape, 3)).transpose(2, 0, 1)
        cos, sin = np.abs(np.cos(tilts)), np.abs(np.sin(tilts))
        return np.stack([cos * wide + sin * tall, deep, sin * wide + cos * tall], 2)
