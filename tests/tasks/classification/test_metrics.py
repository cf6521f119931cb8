from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from tasks.classification.metrics import BINS, TEMPERATURES, Scores, fit_temperature


def sample(n: int, classes: int, scale: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = scale * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), targets] += scale
    return logits, targets


def scores(logits: torch.Tensor, targets: torch.Tensor, parts: int = 1) -> dict[str, float]:
    metric = Scores(logits.shape[1])
    for part, truth in zip(logits.chunk(parts), targets.chunk(parts), strict=True):
        metric.update(part, truth)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize(("n", "classes"), [(500, 10), (300, 3), (200, 100), (40, 6)])
def test_scores_are_those_of_torchmetrics(n, classes):
    logits, targets = sample(n, classes)
    found = scores(logits, targets, parts=4)
    probs = logits.softmax(1)
    assert found["top1"] == pytest.approx(100 * multiclass_accuracy(probs, targets, classes, average="micro").item())
    per_class = multiclass_accuracy(probs, targets, classes, average=None)
    present = targets.bincount(minlength=classes) > 0
    assert found["worst_class"] == pytest.approx(100 * per_class[present].min().item())
    ece = multiclass_calibration_error(probs, targets, classes, n_bins=BINS, norm="l1").item()
    assert found["ece"] == pytest.approx(100 * ece, rel=1e-4)
    assert found["nll"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert ("top5" in found) is (classes > 5)
    if classes > 5:
        top5 = multiclass_accuracy(probs, targets, classes, average="micro", top_k=5).item()
        assert found["top5"] == pytest.approx(100 * top5)


def test_ece_by_hand():
    # Two bins: 0.9 sure and right half of the time, 0.6 sure and always right.
    high, low = math.log(9), math.log(1.5)
    logits = torch.tensor([[high, 0], [high, 0], [low, 0], [low, 0]])
    found = scores(logits, torch.tensor([0, 1, 0, 0]))
    assert found["ece"] == pytest.approx(100 * (0.5 * 0.4 + 0.5 * 0.4), rel=1e-5)
    assert found["top1"] == 75
    assert found["worst_class"] == 0


def test_certain_and_low_precision_logits():
    logits = torch.tensor([[1000.0, 0, 0], [0, 1000, 0]])
    found = scores(logits, torch.tensor([0, 1]))
    assert (found["top1"], found["nll"], found["ece"]) == (100, 0, 0)
    logits, targets = sample(200, 10)
    low = scores(logits.bfloat16(), targets)
    assert low["nll"] == pytest.approx(scores(logits, targets)["nll"], rel=0.02)
    assert scores(logits.double(), targets)["ece"] == pytest.approx(scores(logits, targets)["ece"], rel=1e-4)


def test_nothing_to_score_is_nan():
    found = scores(torch.zeros(0, 10), torch.zeros(0, dtype=torch.long))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("truth", [0.25, 1.0, 4.0])
def test_temperature_is_found_again(truth):
    """Labels drawn from softmax(z) and logits T z: the best temperature is T."""
    generator = torch.Generator().manual_seed(0)
    clean = 2 * torch.randn(20_000, 5, generator=generator)
    targets = torch.multinomial(clean.softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(truth * clean, targets)
    assert found == pytest.approx(truth, rel=0.03)
    # The lowest of all: to the sides the loss rises.
    losses = [F.cross_entropy(truth * clean.double() / (found * f), targets).item() for f in (0.99, 1.0, 1.01)]
    assert np.argmin(losses) == 1


def test_temperature_stays_in_its_bounds():
    right, wrong = torch.eye(4), 1 - torch.eye(4)
    targets = torch.arange(4)
    assert fit_temperature(right, targets) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(wrong, targets) == pytest.approx(TEMPERATURES[1], rel=1e-3)
    assert fit_temperature(torch.zeros(0, 4), targets[:0]) == 1
