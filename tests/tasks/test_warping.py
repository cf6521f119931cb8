"""Images moved with what is known of their pixels, and carried scores."""

from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.features import Logits
from kdbench.functional.hard_affine import affine_positions, grid_positions, sample_images
from kdbench.task import Batch
from tasks.warping import AFFINE, affine, deform_images, deform_labelled

UNKNOWN = 255


def images(size: int = 2) -> Batch:
    draw = rng.generator(0, "warping", size)
    targets = torch.randint(4, (size, 8, 12), generator=draw)
    targets[0, 0, 0] = UNKNOWN
    return Batch(torch.randn(size, 3, 8, 12, generator=draw), targets, torch.arange(size))


def labelled(batch, source):
    return deform_labelled(batch, source, UNKNOWN)


def test_labels_and_scores_move_with_their_pixels():
    batch, by = images(), torch.zeros(2, len(AFFINE))
    by[0, 2] = 2 * 4 / 12  # four pixels across, of a cell each in the scores
    moved, carry = affine(labelled)(batch, by)
    torch.testing.assert_close(moved.inputs[0, :, :, :8], batch.inputs[0, :, :, 4:], atol=1e-5, rtol=0)
    assert torch.equal(moved.targets[0, :, :8], batch.targets[0, :, 4:])
    assert (moved.targets[0, :, 8:] == UNKNOWN).all()
    assert torch.equal(moved.targets[1], batch.targets[1])
    scores = torch.randn(2, 4, 2, 3, generator=rng.generator(0, "scores"))
    carried = carry(Logits(scores, 1))
    torch.testing.assert_close(carried.values[0, :, :, :2], scores[0, :, :, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(carried.values[1], scores[1], atol=1e-5, rtol=0)


def test_an_unknown_class_stays_unknown_and_none_arises():
    batch = images()
    moved, _ = affine(labelled)(batch, 0.2 * torch.randn(2, 6, generator=rng.generator(0, "by")))
    assert moved.targets.dtype == batch.targets.dtype
    assert set(moved.targets.unique().tolist()) <= {0, 1, 2, 3, UNKNOWN}


def test_labels_of_whole_images_stay():
    batch = Batch(images().inputs, torch.tensor([3, -1]), torch.arange(2), torch.tensor([True, False]))
    moved, carry = affine(deform_images)(batch, torch.ones(2, 6))
    assert torch.equal(moved.targets, batch.targets)
    assert moved.supervised is batch.supervised
    scores = Logits(torch.zeros(2, 4))
    assert carry(scores) is scores


@pytest.mark.parametrize("deform", [deform_images, labelled])
def test_both_ways_of_moving_are_one(deform):
    batch, by = images(), 0.1 * torch.randn(2, 6, generator=rng.generator(0, "by"))
    moved, _ = affine(deform)(batch, by)
    expected = sample_images(batch.inputs, affine_positions(grid_positions(8, 12, by), by), (8, 12))
    assert torch.equal(moved.inputs, expected)


def test_gradients_reach_the_numbers_by_images_and_by_scores():
    by = (0.1 * torch.randn(2, 6, generator=rng.generator(0, "by"))).requires_grad_()
    moved, carry = affine(labelled)(images(), by)
    scores = Logits(torch.randn(2, 4, 2, 3, generator=rng.generator(0, "scores")), 1)
    for value in (moved.inputs, carry(scores).values):
        (grad,) = torch.autograd.grad(value.square().sum(), [by], retain_graph=True)
        assert (grad != 0).all()
