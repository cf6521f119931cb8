"""Mixed images, and what is known of the classes of their pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.task import Outputs, dense_label
from tests.tasks.segmentation import tiny

ORDER = torch.tensor([1, 0])
NOTHING = nn.Identity()


def test_with_boxes_each_pixel_keeps_the_class_of_where_it_is_from():
    task, batch = tiny.shaped(), tiny.batch()
    own = torch.ones(2, 32, 48)
    own[:, 4:20, 10:30] = 0
    found = task.mix(batch, ORDER, own)
    assert not found.targets.is_floating_point()
    for values, mixed in ((batch.inputs, found.inputs), (batch.targets, found.targets)):
        assert torch.equal(mixed[0][..., 4:20, 10:30], values[1][..., 4:20, 10:30])
        assert torch.equal(mixed[0][..., 20:, :], values[0][..., 20:, :])
    assert found.supervised is None
    assert torch.equal(dense_label(found) < 0, found.targets == IGNORED)


def test_with_shares_each_pixel_has_a_distribution_and_the_loss_is_its_cross_entropy():
    task, batch = tiny.shaped(), tiny.batch()
    share = torch.tensor([0.25, 1.0])
    found = task.mix(batch, ORDER, share)
    assert found.targets.shape == (2, 3, 32, 48)
    logits = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    logs = logits.log_softmax(1)
    losses = []
    for i, j in ((0, 1), (1, 0)):
        for y in range(32):
            for x in range(48):
                a, here, there = float(share[i]), int(batch.targets[i, y, x]), int(batch.targets[j, y, x])
                if here == IGNORED or (a < 1 and there == IGNORED):
                    assert not found.targets[i, :, y, x].any()
                    continue
                losses.append(
                    -a * float(logs[i, here, y, x]) - (0 if a == 1 else (1 - a) * float(logs[i, there, y, x]))
                )
    loss = task.loss(NOTHING, Outputs(logits, logits), found)
    assert float(loss["ce"]) == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert float(loss["aux"]) == float(loss["ce"])


def test_mixed_pixels_are_distilled_where_both_classes_are_known_and_have_no_one_class():
    task, batch = tiny.shaped(), tiny.batch()
    found = task.mix(batch, ORDER, torch.tensor([0.5, 0.5]))
    known = (batch.targets != IGNORED).all(0)
    whole: Any = task.describe(Outputs(torch.randn(2, 3, 32, 48)), {}, found)["logits"]
    assert whole.target is None
    assert torch.equal(whole.mask, known.expand(2, -1, -1))
    small: Any = task.describe(Outputs(torch.randn(2, 3, 8, 12)), {}, found)["logits"]
    assert torch.equal(small.mask, whole.mask[:, 2::4, 2::4])


def test_a_mixture_without_any_class_gives_a_zero_on_the_graph():
    task, batch = tiny.shaped(), tiny.batch(ignored=1.1)
    logits = torch.randn(2, 3, 8, 12, requires_grad=True)
    loss = task.loss(NOTHING, Outputs(logits), task.mix(batch, ORDER, torch.tensor([0.5, 0.5])))["ce"]
    assert loss.item() == 0
    loss.backward()
