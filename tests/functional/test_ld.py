"""References are the authors' assigner and loss in words (HikariTJU/LD), one box and anchor at a time, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.ld import localisation_loss, valuable_region
from tests.functional.checks import check_autocast, check_empty, check_low_precision, check_zero
from tests.methods.boxes import anchors, truth


def edges(*shape: int) -> tuple[torch.Tensor, ...]:
    g = rng.generator(0, "ld", *shape)
    student, teacher = (3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.rand(shape[:2], generator=g, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 4, 2), (3, 2, 4, 17)])
@pytest.mark.parametrize("t", [1.0, 10.0])
def test_loss(shape, t):
    student, teacher, weight = edges(*shape)
    expected = 0.0
    for b, a, e in np.ndindex(*shape[:3]):
        p, q = (np.exp(x[b, a, e].numpy() / t) / np.exp(x[b, a, e].numpy() / t).sum() for x in (teacher, student))
        expected += weight[b, a].item() * t**2 * np.mean(p * np.log(p / q)) / 4
    value = localisation_loss(student, teacher, weight, t)
    assert value.item() == pytest.approx(expected / shape[0], rel=1e-9)


def iou(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """IoU and DIoU."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    areas = [np.prod(x[2:] - x[:2]) for x in (first, second)]
    overlap = shared / (sum(areas) - shared)
    apart = np.sum(((first[:2] + first[2:]) / 2 - (second[:2] + second[2:]) / 2) ** 2)
    diagonal = np.sum((np.maximum(first[2:], second[2:]) - np.minimum(first[:2], second[:2])) ** 2)
    return overlap, overlap - apart / diagonal


def region(boxes: np.ndarray, labels: np.ndarray, start: np.ndarray, level: np.ndarray, k: int) -> np.ndarray:
    found = np.zeros((len(boxes), len(start)))
    for b, m in np.ndindex(*labels.shape):
        if labels[b, m] < 0:
            continue
        both = np.array([iou(boxes[b, m], a) for a in start])
        centre = (boxes[b, m, :2] + boxes[b, m, 2:]) / 2
        distance = np.linalg.norm((start[:, :2] + start[:, 2:]) / 2 - centre, axis=1)
        chosen: list[float] = []
        for of_level in np.unique(level):
            places = np.flatnonzero(level == of_level)
            chosen += [both[i, 0] for i in places[np.argsort(distance[places], kind="stable")][:k]]
        threshold = np.mean(chosen) + np.std(chosen, ddof=1)
        inside = (both[:, 1] < threshold) & (both[:, 1] >= 0.25 * threshold)
        found[b] = np.maximum(found[b], np.where(inside, both[:, 0], 0))
    return found


def test_region():
    """An even number of candidates, since both anchors of a cell lie equally near."""
    (boxes, labels), (start, level) = truth(3), anchors()
    found = valuable_region(boxes, labels, start, level, candidates=8)
    expected = region(boxes.double().numpy(), labels.numpy(), start.double().numpy(), level.numpy(), 8)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-6)
    assert found[1:].any(1).all()
    assert not found[0].any()  # an image without boxes


def test_region_of_nothing():
    (boxes, labels), (start, level) = truth(2), anchors()
    assert valuable_region(boxes[:, :0], labels[:, :0], start, level).shape == (2, len(start))
    assert not valuable_region(boxes[:, :0], labels[:, :0], start, level).any()
    assert valuable_region(boxes, labels, start[:0], level[:0]).shape == (2, 0)
    assert valuable_region(boxes, labels, start[:1], level[:1]).isfinite().all()


def test_what_does_not_count_has_no_part():
    student, teacher, weight = edges(2, 3, 4, 5)
    weight[:, 1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(localisation_loss(student, teacher, weight), student)
    assert gradient[:, 0].any()
    assert not gradient[:, 1].any()
    assert torch.autograd.gradcheck(lambda s: localisation_loss(s, teacher, weight), (student,))
    assert localisation_loss(teacher, teacher, weight).item() == pytest.approx(0, abs=1e-12)
    check_zero(localisation_loss, (2, 3, 4, 5), (2, 3, 4, 5), torch.zeros(2, 3))


def test_low_precision_and_no_rows():
    student, teacher, weight = (x.float() for x in edges(2, 3, 4, 5))
    check_low_precision(localisation_loss, student, teacher, weight)
    check_autocast(localisation_loss, student, teacher, weight)
    check_empty(localisation_loss, (0, 3, 4, 5), (0, 3, 4, 5), (0, 3))
    check_empty(localisation_loss, (2, 0, 4, 5), (2, 0, 4, 5), (2, 0))
    with pytest.raises(KDBenchError, match="localisation_loss: the student has shape"):
        localisation_loss(student, teacher[..., :2], weight)
