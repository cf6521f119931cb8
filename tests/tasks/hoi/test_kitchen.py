"""The made-up kitchen: rules that know no label find them all, and what makes it hard is there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tasks.hoi import kitchen
from tasks.hoi.kitchen import AFFORDANCES, SUB_ACTIVITIES, Kitchen
from tasks.hoi.kitchen.stage import DOOR, GRASP, LID, SIZES, Take
from tests.tasks.hoi import tiny

HEAD, HANDS = 0, (7, 8)
CLOSE = 1e-6


def oracle(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Tells labels from the true positions by rules about contact, motion and what comes before and after."""
    steps, count = take.centres.shape[:2]
    hands = take.joints[:, HANDS]
    hand = hands[:, int(np.abs(np.diff(hands, axis=0)).sum((0, 2)).argmax())]
    moved = np.diff(hand, axis=0, prepend=hand[:1])
    holds = np.linalg.norm(take.centres - (hand[:, None] + GRASP), axis=2) < CLOSE
    turns = np.stack([_on_arc(take, n, hand) for n in range(count)], 1)
    at_rest = np.linalg.norm(hand - hand[0], axis=1) < CLOSE
    acts = {name: i for i, name in enumerate(SUB_ACTIVITIES)}
    human, used = np.full(steps, acts["null"]), np.full((steps, count), AFFORDANCES.index("stationary"))
    is_open, turning = [False] * count, -1
    for t in range(1, steps):
        carried = np.flatnonzero(holds[t] & holds[t - 1])
        turned = np.flatnonzero(turns[t] & turns[t - 1])
        if turned.size and turning != turned[0]:
            is_open[turned[0]] = not is_open[turned[0]]
        turning = int(turned[0]) if turned.size else -1
        if turned.size:
            name, affordance = ("opening", "openable") if is_open[turned[0]] else ("closing", "closeable")
            used[t, turned[0]] = AFFORDANCES.index(affordance)
        elif carried.size:
            name = _carrying(take, t, int(carried[0]), moved[t], hand)
            for n, affordance in _uses(take, t, name, int(carried[0])).items():
                used[t, n] = AFFORDANCES.index(affordance)
        else:
            name = "null"
            later = np.flatnonzero((holds | turns)[t:].any(1) | at_rest[t:])
            arrives = t + int(later[0]) if later.size else t
            if np.abs(moved[t]).max() > CLOSE and (holds | turns)[arrives].any():
                name = "reaching"
                used[t, int((holds | turns)[arrives].argmax())] = AFFORDANCES.index("reachable")
        human[t] = acts[name]
    return human, used


def _on_arc(take: Take, n: int, hand: np.ndarray) -> np.ndarray:
    name, centre = take.categories[n], take.centres[:, n]
    if name == "cabinet":
        middle, radius = centre + [0, 0.7 * DOOR - SIZES[name][1] / 2 - 0.02, 0], DOOR
    elif name == "jar":
        middle, radius = centre + [0, 0, SIZES[name][2] / 2 + 0.02], LID
    else:
        return np.zeros(len(hand), bool)
    away = hand - middle
    return (np.abs(np.linalg.norm(away, axis=1) - radius) < CLOSE) & (np.abs(away[:, 2]) < CLOSE)


def _carrying(take: Take, t: int, n: int, moved: np.ndarray, hand: np.ndarray) -> str:
    along = np.abs(moved) > CLOSE
    if along.tolist() == [True, False, False]:
        return "cleaning" if take.categories[n] == "cloth" else "pouring"
    if along.tolist() == [False, False, True] and moved[2] < 0:
        return "placing"
    if not along.any() and np.linalg.norm(hand[t] - take.joints[t, HEAD]) < 0.16:
        return {"cup": "drinking", "food": "eating"}.get(take.categories[n], "moving")
    return "moving"


def _uses(take: Take, t: int, name: str, n: int) -> dict[int, str]:
    others = [i for i in range(len(take.categories)) if i != n]
    below = min(others, key=lambda i: np.linalg.norm((take.centres[t, i] - take.centres[t, n])[:2]), default=n)
    if name == "placing":
        away = np.abs(take.centres[t, below] - take.centres[t, n])[:2]
        inside = take.categories[below] == "cabinet" and (away < np.array(SIZES["cabinet"])[:2] / 2).all()
        return {n: "placeable", **({below: "containable"} if inside else {})}
    if name == "pouring":
        return {n: "pourable", below: "pourto"}
    if name == "cleaning":
        return {n: "cleaner", below: "cleanable"}
    return {n: {"drinking": "drinkable"}.get(name, "movable")}


@pytest.mark.parametrize("rate", [3.0, 10.0])
def test_rules_find_every_label_in_true_positions(rate):
    options = Kitchen(rate=rate)
    takes = [kitchen.take(options, number) for number in range(120)]
    found = [oracle(take) for take in takes]
    human = np.concatenate([said == take.human for take, (said, _) in zip(takes, found, strict=True)])
    used = np.concatenate([(said == take.object).ravel() for take, (_, said) in zip(takes, found, strict=True)])
    assert human.mean() > 0.995
    assert used.mean() > 0.995
    assert {take.activity for take in takes} == {
        "arranging objects", "cleaning objects", "having meal", "making cereal", "microwaving food", "picking objects",
        "stacking objects", "taking food", "taking medicine", "unstacking objects",
    }  # fmt: skip


def test_labels_and_lengths_are_of_the_kind_of_cad120():
    options = Kitchen(videos=240)
    made = [kitchen.video(options, number)[1] for number in range(options.videos)]
    steps = np.percentile([video.steps for video in made], [10, 50, 90]) / options.rate
    assert np.all(np.abs(np.log(steps / [7.6, 16.2, 26.2])) < np.log(1.4))  # s; CAD-120's frames at 30 a second
    assert {video.objects for video in made} >= {1, 2, 3, 4, 5}
    share = np.bincount(np.concatenate([video.human_label.ravel() for video in made])) / sum(v.steps for v in made)
    assert set(np.flatnonzero(share)) == {*range(len(SUB_ACTIVITIES))}
    assert share.argmax() == SUB_ACTIVITIES.index("moving")
    used = np.bincount(np.concatenate([video.object_label.ravel() for video in made]))
    assert set(np.flatnonzero(used)) == {*range(len(AFFORDANCES))}
    assert 0.55 < used[AFFORDANCES.index("stationary")] / used.sum() < 0.8


def test_a_sensor_errs_as_often_as_it_is_told_to():
    options = Kitchen(misses=0.2, confusion=0.3)
    made = [(kitchen.take(options, i), kitchen.video(options, i)[1]) for i in range(80)]
    seen = np.concatenate([video.mask[:, 1:].ravel() for _, video in made])
    assert abs(1 - seen.mean() - 0.2) < 0.02
    wrong = [
        kitchen.CATEGORIES[c] != name
        for take, video in made
        for c, name in zip(video.category, take.categories, strict=True)
    ]
    assert abs(np.mean(wrong) - 0.3) < 0.08
    exact = Kitchen(misses=0.0, confusion=0.0, jitter=0.0)
    take, video = kitchen.take(exact, 3), kitchen.video(exact, 3)[1]
    assert video.mask.all()
    assert np.allclose(video.object[..., :3], take.centres - take.joints[:, 2, None], atol=1e-3)


def test_a_door_opens_either_way_and_order_tells_nothing():
    options = Kitchen(videos=200)
    takes = [kitchen.take(options, number) for number in range(options.videos)]
    ways: Counter[bool] = Counter()
    for take in takes:
        turned = np.flatnonzero(take.human == SUB_ACTIVITIES.index("opening"))
        if "cabinet" in take.categories and turned.size:
            hand = take.joints[turned][:, HANDS]
            active = int(np.abs(np.diff(hand, axis=0)).sum((0, 2)).argmax())
            ways[bool(hand[-1, active, 0] > hand[0, active, 0])] += 1
    assert min(ways[True], ways[False]) > 0.25 * sum(ways.values())
    places = Counter(take.categories.index("cabinet") for take in takes if "cabinet" in take.categories)
    assert len(places) >= 3


def test_a_video_depends_on_its_number_and_the_seed_alone():
    first, again = (kitchen.video(Kitchen(**options), 7)[1] for options in ({"videos": 300}, {"videos": 40}))
    assert first.digest() == again.digest()
    assert kitchen.video(Kitchen(seed=1), 7)[1].digest() != first.digest()


def test_people_are_held_out_whole():
    _, folds, videos = kitchen.make(Kitchen(**tiny.KITCHEN))
    assert len(folds) == 2
    for fold in folds:
        who = [{int(name) % 4 for name in names} for names in (fold.train, fold.test)]
        assert not who[0] & who[1]
        assert len(fold.train) + len(fold.test) == len(videos) == 36
