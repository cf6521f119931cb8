"""Where things stand: one street with its traffic, drawn from the random stream of the scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.segmentation.streets import things
from tasks.segmentation.streets.shapes import Stage, boxes

#: Mean number of things of a scene; more people, poles and signs than on a real street, or small networks learn none.
DENSITY = {"person": 15.0, "car": 6.0, "bus": 0.7, "pole": 6.0, "traffic sign": 6.0, "tree": 5.0}
LANE, PARKING, VERGE = 3.2, 2.3, 1.7  # m, widths
NEAR = 0.7  # m, from which on things are painted


@dataclass(frozen=True)
class Street:
    """The ground.

    Attributes:
        left: x of the left edge of the road, metres.
        right: x of the right one.
        walk_left: Width of the left pavement.
        walk_right: Width of the right one.
        crossing: z from which to which another street crosses, or None.
        end: z of what closes the view.
        lanes: Lanes in the direction of the camera, and against it.
        parking: Whether there is a parking lane left, right.
        verges: Whether a strip of grass parts road and pavement left, right.
    """

    left: float
    right: float
    walk_left: float
    walk_right: float
    crossing: tuple[float, float] | None
    end: float
    lanes: tuple[int, int]
    parking: tuple[bool, bool]
    verges: tuple[bool, bool]

    def crosses(self, near: float, far: float, margin: float = 0.0) -> bool:
        """Whether something from z = ``near`` to ``far`` would stand on the crossing street."""
        if self.crossing is None:
            return False
        return near < self.crossing[1] + margin and far > self.crossing[0] - margin


def street(g: np.random.Generator) -> Street:
    """Draws the ground."""
    along, against = 1 + int(g.random() < 0.3), 1 + int(g.random() < 0.35)
    parking = bool(g.random() < 0.4), bool(g.random() < 0.45)
    verges = bool(g.random() < 0.35), bool(g.random() < 0.35)
    start = g.uniform(13, 38)
    return Street(
        left=-LANE / 2 - against * LANE - parking[0] * PARKING,
        right=LANE / 2 + (along - 1) * LANE + parking[1] * PARKING,
        walk_left=g.uniform(2.8, 5.5) + verges[0] * VERGE,
        walk_right=g.uniform(2.8, 5.5) + verges[1] * VERGE,
        crossing=(start, start + g.uniform(7, 12)) if g.random() < 0.45 else None,
        end=g.uniform(60, 150),
        lanes=(along, against),
        parking=parking,
        verges=verges,
    )


def furnish(g: np.random.Generator, ground: Street, density: Mapping[str, float]) -> Stage:
    """Puts everything onto the ground."""
    stage = Stage()
    for side in (-1, 1):
        _frontage(stage, g, ground, side)
    _closing(stage, g, ground)
    _greenery(stage, g, ground, density["tree"])
    _traffic(stage, g, ground, density["car"], density["bus"])
    _furniture(stage, g, ground, density)
    _pedestrians(stage, g, ground, density["person"])
    _clutter(stage, g, ground)
    return stage


def _frontage(stage: Stage, g: np.random.Generator, ground: Street, side: int) -> None:
    """Lines a side of the street with buildings and gardens."""
    line = ground.right + ground.walk_right if side > 0 else ground.left - ground.walk_left
    z, storeys = g.uniform(-4, 1), g.uniform(2, 6)
    while z < ground.end:
        long = g.uniform(7, 19)
        near, far = max(z, NEAR), min(z + long, ground.end + 5)
        z += long
        if far - near < 2 or ground.crosses(near, far):
            if ground.crossing and near < ground.crossing[0]:
                far = ground.crossing[0] - 1.0
            else:
                continue
            if far - near < 3:
                continue
        if g.random() < 0.72:
            back = g.choice([0.0, g.uniform(0.5, 3.5)])
            things.building(stage, g, line + side * back, near, far, 3.2 * max(1.0, storeys + g.uniform(-1.5, 2)))
            if back > 1 and g.random() < 0.6:
                things.fence(stage, g, line, near, far, g.uniform(0.9, 1.5))
        else:
            things.fence(stage, g, line, near, far, g.uniform(1.0, 2.0))
            count = int(g.integers(1, 4))
            place = np.column_stack([line + side * g.uniform(2.0, 7.0, count), 0 * np.arange(count),
                                     g.uniform(near, far, count)])  # fmt: skip
            place[:, 2] = place[:, 2].clip(3)
            things.trees(stage, g, place, g.uniform(1.0, 3.0, count), g.uniform(1.5, 3.2, count), tier=-1)


def _closing(stage: Stage, g: np.random.Generator, ground: Street) -> None:
    """Closes the view with buildings or trees."""
    x = -60.0
    while x < 60:
        wide = g.uniform(9, 22)
        if g.random() < 0.6:
            number = stage.things("building", [ground.end + 20], tier=-2)
            size = np.array([[wide, g.uniform(6, 20), 10]])
            faces, normals = boxes(np.array([[x + wide / 2, 0, ground.end + 20]]), size)
            stage.add(number, faces, normals, things.pick(g, things.WALLS, 1))
        else:
            place = np.array([[x + wide / 2, 0, ground.end + 15]])
            things.trees(stage, g, place, np.array([1.0]), np.array([wide / 1.8]), tier=-2)
        x += wide


def _greenery(stage: Stage, g: np.random.Generator, ground: Street, mean: float) -> None:
    """Plants trees along the kerbs, and bushes."""
    count = int(g.poisson(mean))
    side = g.integers(2, size=count)
    x = np.where(side, ground.right + 0.9, ground.left - 0.9) + g.uniform(-0.3, 0.3, count)
    z = 7 + 60 * g.random(count) ** 1.3
    kept = np.array([not ground.crosses(v - 2, v + 2) for v in z], dtype=bool)
    place = np.column_stack([x, 0 * x, z])[kept]
    bush = g.random(len(place)) < 0.3
    trunk = np.where(bush, 0.0, g.uniform(2.2, 3.4, len(place)))
    things.trees(stage, g, place, trunk, np.where(bush, 0.7, g.uniform(1.2, 2.4, len(place))))


def _traffic(stage: Stage, g: np.random.Generator, ground: Street, cars: float, buses: float) -> None:
    """Drives and parks vehicles; every lane is a queue with gaps."""
    along, against = ground.lanes
    lanes = [(LANE * i, 0.0, 9.0 if i == 0 else 5.0, 1.0) for i in range(along)]
    lanes += [(-LANE * (i + 1), np.pi, 5.0, 1.0) for i in range(against)]
    for there, edge, sign in zip(ground.parking, (ground.left, ground.right), (1, -1), strict=True):
        lanes += [(edge + sign * PARKING / 2, 0.0 if sign < 0 else np.pi, 4.5, 2.2)] * there
    weight = sum(lane[3] for lane in lanes)
    found: dict[str, list[tuple[float, float, float]]] = {"car": [], "van": [], "bus": []}
    for x, yaw, start, share in lanes:
        z = start
        gap = 45.0 * weight / max(cars * share, 0.1) - 4.5
        while (z := z + g.exponential(max(gap, 1.0))) < 75:
            kind = "bus" if g.random() < buses / max(cars, 0.5) and share == 1.0 else "car"
            kind = "van" if kind == "car" and g.random() < 0.2 else kind
            long = 11.0 if kind == "bus" else 5.2
            if not (share > 1 and ground.crosses(z, z + long)):
                found[kind].append((x + g.uniform(-0.2, 0.2), z + long / 2, yaw + g.normal(0, 0.02)))
            z += long + 1.2
    if ground.crossing is not None:
        middle = sum(ground.crossing) / 2
        for offset, yaw in ((-1.7, np.pi / 2), (1.7, -np.pi / 2)):
            if g.random() < 0.5:
                kind = "bus" if g.random() < 0.2 else "car"
                found[kind].append((float(g.uniform(-14, 14)), middle + offset, yaw + g.normal(0, 0.05)))
    for name, sizes in (("car", things.CAR), ("van", things.VAN), ("bus", things.BUS)):
        rows = np.array(found[name]).reshape(-1, 3)
        place = np.column_stack([rows[:, 0], 0 * rows[:, 0], rows[:, 1]])
        things.vehicles(stage, g, sizes, place, rows[:, 2])


def _furniture(stage: Stage, g: np.random.Generator, ground: Street, density: Mapping[str, float]) -> None:
    """Sets up lamps, posts, signs and boards along the kerbs."""
    count = int(g.poisson(density["pole"]))
    side = g.integers(2, size=count)
    x = np.where(side, ground.right + 0.45, ground.left - 0.45)
    z = 5 + 45 * g.random(count) ** 1.4
    lamp = g.random(count) < 0.6
    tall = np.where(lamp, g.uniform(5, 9, count), g.choice([1.0, 3.4], count))
    wide = np.where(lamp, g.uniform(0.16, 0.28, count), g.uniform(0.12, 0.2, count))
    arm = np.where(lamp & (g.random(count) < 0.7), np.where(side, -1, 1) * g.uniform(1.0, 2.4, count), 0.0)
    things.poles(stage, g, np.column_stack([x, 0 * x, z]), tall, wide, arm)

    count = int(g.poisson(density["traffic sign"]))
    right = g.random(count) < 0.65
    x = np.where(right, ground.right + 0.6, ground.left - 0.6) + g.uniform(-0.1, 0.5, count)
    z = 5 + 26 * g.random(count) ** 1.4
    high, radius = g.uniform(2.1, 3.0, count), g.uniform(0.36, 0.55, count)
    post = np.column_stack([x, 0 * x, z])
    things.poles(stage, g, post, high + 0.2, np.full(count, 0.1), 0 * x)
    centre = post + np.column_stack([0 * x, high, 0 * x - 0.08])
    second = g.random(count) < 0.3
    lower = centre[second] - np.column_stack([0 * x[second], 2.1 * radius[second], 0 * x[second]])
    things.signs(stage, g, np.concatenate([centre, lower]), np.concatenate([radius, 0.85 * radius[second]]))

    if g.random() < 0.06 * density["traffic sign"]:
        reach = float(g.uniform(2.5, ground.right + 2.5))
        post = np.array([[ground.right + 0.7, 0.0, g.uniform(14, 34)]])
        things.poles(stage, g, post, np.array([6.2]), np.array([0.3]), np.array([-reach]))
        size = np.array([[min(reach, g.uniform(2.2, 4.0)), g.uniform(1.2, 2.0)]])
        things.boards(stage, g, post + [[-reach + size[0, 0] / 2, 5.9, -0.3]], size)


def _pedestrians(stage: Stage, g: np.random.Generator, ground: Street, mean: float) -> None:
    """Lets people walk on the pavements, alone or in twos and threes, and over the crossing."""
    groups = int(g.poisson(mean / 1.6))
    size = 1 + (g.random(groups) < 0.35).astype(int) + (g.random(groups) < 0.2)
    side = g.random(groups) < 0.55
    x = np.where(side, ground.right + 0.5 + g.random(groups) * (ground.walk_right - 0.9),
                 ground.left - 0.5 - g.random(groups) * (ground.walk_left - 0.9))  # fmt: skip
    z = 4.5 + 26 * g.random(groups) ** 1.6
    side_on = g.random(groups) < 0.2
    if ground.crossing is not None:
        over = g.random(groups) < 0.3
        x = np.where(over, g.uniform(ground.left, ground.right, groups), x)
        z = np.where(over, ground.crossing[0] - g.uniform(0.8, 3.2, groups), z)
        side_on |= over
    x, z, side_on = (np.repeat(value, size) for value in (x, z, side_on))
    spread = g.uniform(-0.5, 0.5, (2, len(x)))
    things.people(stage, g, np.column_stack([x + spread[0], 0 * x, z + spread[1]]), side_on)


def _clutter(stage: Stage, g: np.random.Generator, ground: Street) -> None:
    """Leaves bins and boxes about, which are of no class."""
    count = int(g.poisson(1.2))
    side = g.integers(2, size=count)
    x = np.where(side, ground.right + 0.5, ground.left - 0.5) + g.uniform(-0.2, 0.8, count)
    z = 6 + 25 * g.random(count)
    place = np.column_stack([x, 0 * x, z])
    number = stage.things("static", z)
    faces, normals = boxes(place, g.uniform([0.4, 0.6, 0.4], [0.9, 1.3, 0.9], (count, 3)), taper=(1.1, 1.1))
    stage.add(number, faces, normals, things.pick(g, things.PANEL, count))
