"""Mixed images, and what is known of their classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tasks.classification.task import Outputs
from tests.tasks.classification import tiny

OWN = torch.tensor([1.0, 0.25])


def test_a_target_is_the_mixture_of_two_classes():
    task = tiny.shaped((8, 8), 1, 10)
    batch = replace(tiny.batch(task), targets=torch.tensor([3, 7]))
    found = task.mix(batch, torch.tensor([1, 0]), OWN)
    expected = torch.zeros(2, 10)
    expected[0, 3], expected[1, 7], expected[1, 3] = 1, 0.25, 0.75
    assert torch.equal(found.targets, expected)
    assert torch.equal(found.inputs[0], batch.inputs[0])
    assert torch.allclose(found.inputs[1], 0.25 * batch.inputs[1] + 0.75 * batch.inputs[0])
    logits = torch.randn(2, 10, dtype=torch.float64)
    losses = -(expected * logits.log_softmax(1)).sum(1)
    assert float(task.loss(nn.Identity(), Outputs(logits), found)["ce"]) == pytest.approx(float(losses.mean()))
    described: Any = task.describe(Outputs(logits), {}, found)["logits"]
    assert described.target is None


def test_by_position_the_target_goes_by_the_share_of_positions():
    task = tiny.shaped((8, 8), 1, 10)
    batch = replace(tiny.batch(task), targets=torch.tensor([3, 7]))
    own = torch.ones(2, 8, 8)
    own[1, :2, :4] = 0
    found = task.mix(batch, torch.tensor([1, 0]), own)
    assert found.targets[1, [3, 7]].tolist() == [0.125, 0.875]
    assert torch.equal(found.inputs[1, :, :2, :4], batch.inputs[0, :, :2, :4])
    assert torch.equal(found.inputs[1, :, 2:], batch.inputs[1, :, 2:])


def test_a_mixture_with_an_unlabelled_image_has_no_label():
    task = tiny.shaped((8, 8), 1, 10)
    batch = replace(tiny.batch(task), targets=torch.tensor([3, -1]))
    found = task.mix(batch, torch.tensor([1, 0]), OWN)
    assert found.supervised is not None
    assert found.supervised.tolist() == [True, False]
    logits = torch.randn(2, 10)
    alone = -logits[0].log_softmax(0)[3]
    assert float(task.loss(nn.Identity(), Outputs(logits), found)["ce"]) == pytest.approx(float(alone), rel=1e-6)


def test_a_mixture_can_be_mixed_again():
    task = tiny.shaped((8, 8), 1, 10)
    batch, order = replace(tiny.batch(task), targets=torch.tensor([3, 7])), torch.tensor([1, 0])
    twice = task.mix(task.mix(batch, order, OWN), order, torch.full((2,), 0.5))
    assert twice.targets[0, [3, 7]].tolist() == [0.875, 0.125]
