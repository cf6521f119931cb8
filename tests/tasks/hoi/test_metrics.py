"""Scores against scikit-learn and against segments counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from kdbench.base import rng
from kdbench.task import scalars
from tasks.hoi.layout import UNKNOWN
from tasks.hoi.metrics import OVERLAPS, Scores, segmental_f1, segments

CLASSES = {"human": ("a", "b", "c", "d"), "object": ("u", "v", "w"), "clip": ("x", "y", "z")}


def tracks(kind: str, batch: int = 3, steps: int = 20, nodes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels in runs; the last class of each is never true, and some steps have no label."""
    draw, classes = rng.numpy(0, kind), len(CLASSES[kind])
    truth = np.repeat(draw.integers(0, classes - 1, (batch, steps // 4, nodes)), 4, 1)
    said = np.where(draw.random(truth.shape) < 0.2, draw.integers(0, classes, truth.shape), truth)
    truth[draw.random(truth.shape) < 0.1] = UNKNOWN
    return torch.nn.functional.one_hot(torch.from_numpy(said), classes).float(), torch.from_numpy(truth)


def test_scores_of_steps_are_those_of_scikit_learn():
    metric = Scores(CLASSES)
    held: dict[str, list] = {"human": [], "object": []}
    for part in range(2):
        logits, targets = {}, {}
        for kind in held:
            logits[kind], targets[kind] = (x[part:] for x in tracks(kind))
            known = targets[kind] != UNKNOWN
            held[kind].append((targets[kind][known].numpy(), logits[kind].argmax(-1)[known].numpy()))
        metric.update(logits, targets)
    found = scalars(metric)
    for kind, prefix in (("human", ""), ("object", "object.")):
        truth, said = (np.concatenate(x) for x in zip(*held[kind], strict=True))
        there = sorted({*truth.tolist()})
        f1 = 100 * f1_score(truth, said, labels=there, average=None, zero_division=0)
        assert found[f"{prefix}macro_f1"] == pytest.approx(f1.mean(), rel=1e-9)
        assert found[f"{prefix}accuracy"] == pytest.approx(100 * accuracy_score(truth, said), rel=1e-9)
        for c, value in zip(there, f1, strict=True):
            assert found[f"{prefix}f1.{CLASSES[kind][c]}"] == pytest.approx(value, rel=1e-9)
        assert f"{prefix}f1.{CLASSES[kind][-1]}" not in found


def test_what_was_not_said_has_no_score():
    metric = Scores(CLASSES)
    logits, truth = tracks("human")
    metric.update({"human": logits}, {"human": truth})
    names = {*scalars(metric)}
    assert {"macro_f1", "accuracy", "f1_10", "f1_25", "f1_50"} <= names
    assert not any(name.startswith("object.") or name == "map" for name in names)


def by_hand(said: np.ndarray, true: np.ndarray, least: float) -> float:
    """Counts right, wrong and missed segments one by one."""

    def runs(labels):
        found, start = [], 0
        for t in range(1, len(labels) + 1):
            if t == len(labels) or labels[t] != labels[start]:
                found.append(({*range(start, t)}, labels[start]))
                start = t
        return found

    truth, used, right, wrong = runs(true), set(), 0, 0
    for own, label in runs(said):
        shares = [len(own & other) / len(own | other) * (name == label) for other, name in truth]
        best = int(np.argmax(shares))
        if shares[best] >= least and best not in used:
            used.add(best)
            right += 1
        else:
            wrong += 1
    return 2 * right / (2 * right + wrong + len(truth) - len(used))


@pytest.mark.parametrize("seed", range(30))
def test_segments_are_counted_as_by_hand(seed):
    draw = rng.numpy(seed, "segments")
    true = np.repeat(draw.integers(0, 3, 8), draw.integers(1, 6, 8))
    said = np.where(draw.random(len(true)) < 0.25, draw.integers(0, 3, len(true)), true)
    assert segmental_f1(said, true) == pytest.approx([by_hand(said, true, least) for least in OVERLAPS])


def test_segmental_f1_of_the_truth_is_one_and_over_segmentation_costs():
    true = np.repeat([0, 1, 2], 10)
    assert segmental_f1(true, true) == [1, 1, 1]
    broken = true.copy()
    broken[::4] = 3
    assert max(segmental_f1(broken, true)) < 0.5
    assert [x.tolist() for x in segments(np.array([4, 4, 1]))] == [[0, 2], [2, 3], [4, 1]]
    assert segmental_f1(np.array([1]), np.array([1])) == [1, 1, 1]


def test_the_mean_is_over_tracks():
    metric = Scores(CLASSES)
    logits, truth = tracks("human")
    metric.update({"human": logits}, {"human": truth})
    said, values = logits.argmax(-1), []
    for b in range(3):
        for n in range(2):
            known = truth[b, :, n] != UNKNOWN
            values.append(segmental_f1(said[b, :, n][known].numpy(), truth[b, :, n][known].numpy()))
    found = scalars(metric)
    assert [found[f"f1_{k}"] for k in (10, 25, 50)] == pytest.approx((100 * np.mean(values, 0)).tolist(), rel=1e-5)


def test_scores_of_clips_are_those_of_scikit_learn():
    draw = rng.numpy(0, "clips")
    logits, truth = draw.normal(size=(40, 3)), (draw.random((40, 3)) < 0.3).astype(np.float32)
    truth[:, 2] = 0  # a class without any clip is left out
    metric = Scores(CLASSES)
    for part in (slice(0, 25), slice(25, 40)):
        metric.update({"clip": torch.from_numpy(logits[part])}, {"clip": torch.from_numpy(truth[part])})
    found = scalars(metric)
    expected = [average_precision_score(truth[:, c], logits[:, c]) for c in range(2)]
    assert found["map"] == pytest.approx(100 * np.mean(expected), rel=1e-5)
    f1 = [f1_score(truth[:, c], logits[:, c] > 0) for c in range(2)]
    assert found["macro_f1"] == pytest.approx(100 * np.mean(f1), rel=1e-5)
