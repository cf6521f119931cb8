"""Overlap against sums by hand, boundaries against distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from kdbench.base import rng
from kdbench.task import scalars
from tasks.segmentation.metrics import TOLERANCE, Boundary, Overlap, edge, widened
from tasks.segmentation.sources.base import IGNORED

NAMES = ("a", "b", "c", "d")


def maps(seed: int, n: int = 3, size: tuple[int, int] = (40, 60), classes: int = 3) -> torch.Tensor:
    """Blobs of classes, with a part of none."""
    drawn = torch.from_numpy(rng.numpy(seed, "maps").integers(0, classes, (n, 8, 10)))
    return drawn.repeat_interleave(size[0] // 8, 1).repeat_interleave(size[1] // 10, 2)


def test_overlap_is_of_the_whole_set():
    truth, said = maps(0), maps(1)
    truth[:, :5] = IGNORED
    metric = Overlap(NAMES)
    for t, s in zip(truth, said, strict=True):  # one image after the other
        metric.update(s[None], t[None])
    found = scalars(metric)
    kept = truth != IGNORED
    t, s = truth[kept].numpy(), said[kept].numpy()
    iou = [100 * ((t == c) & (s == c)).sum() / ((t == c) | (s == c)).sum() for c in range(3)]
    recall = [100 * ((t == c) & (s == c)).sum() / (t == c).sum() for c in range(3)]
    assert found["miou"] == pytest.approx(np.mean(iou))  # "d" is neither there nor predicted
    assert [found[f"iou.{name}"] for name in "abc"] == pytest.approx(iou)
    assert "iou.d" not in found
    assert found["pixel_acc"] == pytest.approx(100 * (t == s).mean())
    assert found["class_acc"] == pytest.approx(np.mean(recall))


def test_a_class_that_is_only_predicted_counts_as_missed():
    metric = Overlap(NAMES)
    metric.update(torch.tensor([[[0, 3]]]), torch.tensor([[[0, 0]]]))
    assert scalars(metric) == pytest.approx(
        {"miou": 25.0, "pixel_acc": 50.0, "class_acc": 50.0, "iou.a": 50.0, "iou.d": 0.0}
    )


def test_nothing_to_score_is_left_out():
    for metric in (Overlap(NAMES), Boundary(4)):
        metric.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), IGNORED))
        assert scalars(metric) == {}


def reference(said: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """The boundary F-score by distance transforms, image by image and class by class."""

    def boundary(labels: np.ndarray, c: int) -> np.ndarray:
        found = np.zeros(labels.shape, bool)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            other = np.full_like(labels, IGNORED)
            ys, xs = slice(max(0, dy), labels.shape[0] + min(0, dy)), slice(max(0, dx), labels.shape[1] + min(0, dx))
            yo, xo = (
                slice(max(0, -dy), labels.shape[0] + min(0, -dy)),
                slice(max(0, -dx), labels.shape[1] + min(0, -dx)),
            )
            other[ys, xs] = labels[yo, xo]
            found |= (labels == c) & (other != c) & (other != IGNORED)
        return found

    radius = TOLERANCE * math.hypot(*truth.shape[1:])
    scores: dict[int, list[float]] = {}
    for s, t in zip(said, truth, strict=True):
        s = np.where(t == IGNORED, IGNORED, s)
        for c in range(classes):
            a, b = boundary(s, c), boundary(t, c)
            if not a.any() and not b.any():
                continue
            near_b = distance_transform_edt(~b) <= radius if b.any() else np.zeros_like(b)
            near_a = distance_transform_edt(~a) <= radius if a.any() else np.zeros_like(a)
            p, r = (near_b[a].mean() if a.any() else 0.0), (near_a[b].mean() if b.any() else 0.0)
            scores.setdefault(c, []).append(2 * p * r / (p + r) if p + r else 0.0)
    return 100 * float(np.mean([np.mean(own) for own in scores.values()]))


@pytest.mark.parametrize("size", [(40, 60), (160, 400)])
def test_boundaries_are_met_within_a_distance(size):
    truth, said = maps(2, size=size), maps(2, size=size).roll(2, 2)
    truth[:, :, :7] = IGNORED
    said[1] = 1
    metric = Boundary(4)
    metric.update(said[:2], truth[:2])
    metric.update(said[2:], truth[2:])
    assert scalars(metric)["boundary_f"] == pytest.approx(reference(said.numpy(), truth.numpy(), 4))
    perfect = Boundary(4)
    perfect.update(truth.clamp(max=3), truth)
    assert scalars(perfect)["boundary_f"] == pytest.approx(100.0)


def test_widening_is_by_a_disc():
    mask = torch.zeros(1, 31, 41, dtype=torch.bool)
    mask[0, 3, 5] = mask[0, 20, 40] = True
    for radius in (0.0, 1.0, 1.5, 4.3, 50.0):
        expected = distance_transform_edt(~mask[0].numpy()) <= radius
        assert np.array_equal(widened(mask, radius)[0].numpy(), expected), radius


def test_no_edge_towards_pixels_of_no_class():
    labels = torch.tensor([[[0, 0, IGNORED, 1, 1, 2]]])
    assert edge(labels).tolist() == [[[False, False, False, False, True, True]]]
