"""Crops of images and masks go together, belong to (seed, epoch, sample), and lie where they were drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import KDBenchError
from tasks.segmentation.sources.base import IGNORED
from tasks.segmentation.transforms import Transforms

KEYS = np.array([3, 11, 12], dtype=np.uint64)


def ramps(n: int = 3, size: tuple[int, int] = (24, 36)) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Images that hold row, column and one, from 0 to 1, and masks that hold the row."""
    rows, columns = torch.meshgrid(*(torch.arange(s).float() for s in size), indexing="ij")
    image = torch.stack([rows / size[0], columns / size[1], torch.ones(size)])
    return [image.clone() for _ in range(n)], [rows.to(torch.uint8) for _ in range(n)]


def test_without_options_nothing_changes():
    images, masks = ramps()
    found, labels = Transforms().crops(images, masks, KEYS, 0, 0)
    assert torch.allclose(found, torch.stack(images), atol=1e-5)
    assert torch.equal(labels, torch.stack(masks).long())


def test_a_mirror_image_of_image_and_mask_alike():
    images, _ = ramps()
    masks = [(image[1] * 36).round().to(torch.uint8) for image in images]
    transforms = Transforms(flip=True)
    seen = set()
    for epoch in range(8):
        found, labels = transforms.crops(images, masks, KEYS, 0, epoch)
        for image, mask in zip(found, labels, strict=True):
            mirrored = bool(image[1, 0, 0] > 0.5)
            seen.add(mirrored)
            expected = images[0].flip(2) if mirrored else images[0]
            assert torch.allclose(image, expected, atol=1e-5)
            assert torch.equal(mask, (masks[0].flip(1) if mirrored else masks[0]).long())
    assert seen == {True, False}


def test_an_enlarged_crop_reads_the_window_that_was_drawn():
    images, masks = ramps()
    transforms = Transforms(scale=(1.2, 2.0), crop=(16, 20))
    windows = transforms.windows(np.array([[24, 36]] * 3), (16, 20), KEYS, 5, 2)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, :2] + windows[:, 2:4] <= [24, 36]).all()
    found, labels = transforms.crops(images, masks, KEYS, 5, 2)
    assert found.shape == (3, 3, 16, 20)
    for image, mask, (top, left, tall, wide, mirrored) in zip(found, labels, windows, strict=True):
        assert mirrored == 1
        rows = top + (np.arange(16) + 0.5) * tall / 16 - 0.5
        columns = left + (np.arange(20) + 0.5) * wide / 20 - 0.5
        inside = (rows > 0) & (rows < 23)
        assert image[0, :, 5].numpy()[inside] * 24 == pytest.approx(rows[inside], abs=1e-3)
        assert image[1, 8].numpy() * 36 == pytest.approx(columns.clip(0, 35), abs=1e-3)
        assert mask[:, 5].numpy() == pytest.approx(rows, abs=0.51)


def test_what_lies_outside_of_an_image_is_of_no_class():
    images, masks = ramps(size=(10, 10))
    found, labels = Transforms(crop=(20, 16)).crops(images, masks, KEYS, 0, 0)
    windows = Transforms(crop=(20, 16)).windows(np.array([[10, 10]] * 3), (20, 16), KEYS, 0, 0)
    for image, mask, (top, left, *_) in zip(found, labels, windows, strict=True):
        assert (mask != IGNORED).sum() == pytest.approx(100, abs=21)
        assert -10 <= top <= 0 and -6 <= left <= 0  # noqa: PT018
        outside = image[2] == 0
        assert outside.any()
        assert (mask[outside] == IGNORED).all()


def test_images_of_several_sizes_come_to_one():
    (wide, wide_mask), (tall, tall_mask) = ramps(1, (24, 36)), ramps(1, (40, 30))
    images, masks = wide + tall, wide_mask + tall_mask
    transforms = Transforms(scale=(0.8, 1.4), crop=(16, 16), flip=True)
    found, labels = transforms.crops(images, masks, KEYS[:2], 0, 0)
    assert found.shape == (2, 3, 16, 16)
    alone = transforms.crops(images[1:], masks[1:], KEYS[1:2], 0, 0)
    assert torch.allclose(found[1], alone[0][0], atol=1e-6)
    assert torch.equal(labels[1], alone[1][0])


def test_light_belongs_to_the_sample_and_stays_in_range():
    images = torch.stack(ramps()[0])
    transforms = Transforms(colour=0.4)
    found = transforms.light(images, KEYS, 0, 0)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(transforms.light(images[1:2], KEYS[1:2], 0, 0)[0], found[1])
    assert not torch.equal(transforms.light(images, KEYS, 0, 1), found)
    assert Transforms().light(images, KEYS, 0, 0) is images


def test_a_bad_scale_is_one_line():
    with pytest.raises(KDBenchError, match=r"data.transforms.scale: found \[2, 1\]; expected 0 < least <= greatest"):
        Transforms(scale=(2, 1))
