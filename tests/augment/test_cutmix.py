from __future__ import annotations

import pytest
import torch

from kdbench.augment.cutmix import CutMix
from kdbench.augment.mixup import Mixup
from kdbench.base import rng
from kdbench.functional.mix import mean_share
from tasks.classification.task import Classification
from tasks.segmentation.task import Segmentation
from tests.augment.harness import augmentation, images


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 40), (3, 9, 20)])
def test_each_position_is_of_one_sample_and_the_target_of_both_by_their_share(shape):
    plugin, ops = augmentation("cutmix")
    batch = images(40, shape)
    changed = plugin.change(batch, rng.generator(0))
    assert ops.own.shape == (40, *shape[1:])
    assert set(ops.own.unique().tolist()) == {0.0, 1.0}
    own = ops.own[:, None].bool().expand_as(batch.inputs)
    assert torch.equal(changed.inputs, torch.where(own, batch.inputs, batch.inputs[ops.order]))
    assert torch.equal(changed.targets, mean_share(ops.own))
    assert 0.4 < float(changed.targets.mean()) < 0.8  # a half, and more as boxes are cut off at the border


def test_a_box_lies_about_what_is_salient_in_the_partner():
    plugin, ops = augmentation("saliencymix", alpha=50.0)
    batch = images(8, (3, 32, 32))
    batch.inputs *= 0.01
    places = torch.tensor([[4 + 3 * i, 28 - 3 * i] for i in range(8)])
    batch.inputs[torch.arange(8), :, places[:, 0], places[:, 1]] = 3.0
    changed = plugin.change(batch, rng.generator(0))
    salient = places[ops.order]
    assert (changed.inputs[torch.arange(8), 0, salient[:, 0], salient[:, 1]] == 3).all()
    assert plugin.fidelity == "approximate"


def test_what_is_taken_from_the_batches():
    assert CutMix.takes(Classification) == Mixup.takes(Segmentation) == CutMix.removes
    assert CutMix.takes(Segmentation) == {"sample_id"}
