from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from kdbench.base import rng
from kdbench.base.instantiate import check
from kdbench.errors import KDBenchError
from tasks.classification.transforms import RATIO, Transforms

KEYS = np.arange(64) * 7919


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("crop", "flip"), [(4, True), (2, False), (0, True), (12, True)])
def test_crop_and_flip_are_those_of_each_image_alone(crop, flip, dtype, images):
    """Image by image with torchvision: pad with black, cut at the drawn corner, mirror the cut."""
    images = images.to(dtype)
    made = Transforms(crop, flip)(images, KEYS, seed=3, epoch=5)
    shifts = np.floor(rng.uniform(3, "crop", 5, index=KEYS, count=2) * (2 * crop + 1)).astype(int)
    mirrored = rng.uniform(3, "flip", 5, index=KEYS)[:, 0] < 0.5
    for i, image in enumerate(images):
        expected = functional.crop(functional.pad(image, [crop] * 4), int(shifts[i, 0]), int(shifts[i, 1]), 12, 10)
        expected = functional.horizontal_flip(expected) if flip and mirrored[i] else expected
        assert torch.equal(made[i], expected)
    assert made.dtype == dtype
    assert 20 < mirrored.sum() < 44
    if crop == 4:
        assert {*shifts.ravel().tolist()} == set(range(9))


def test_augmentation_belongs_to_seed_epoch_and_sample(images):
    transforms = Transforms(4, True)
    made = transforms(images, KEYS, 0, 0)
    chosen = torch.tensor([5, 40, 2])
    assert torch.equal(transforms(images[chosen], KEYS[chosen], 0, 0), made[chosen])
    assert not torch.equal(transforms(images, KEYS, 0, 1), made)
    assert not torch.equal(transforms(images, KEYS, 1, 0), made)
    assert transforms(images[:0], KEYS[:0], 0, 0).shape == (0, 3, 12, 10)
    assert Transforms()(images, KEYS, 0, 0) is images


def test_a_border_of_the_outermost_pixels(images):
    """As NumPy's padding has it; the same draws as with a black border."""
    made, black = (Transforms(3, True, border=border)(images, KEYS, 2, 1) for border in ("edge", "black"))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    shifts = np.floor(rng.uniform(2, "crop", 1, index=KEYS, count=2) * 7).astype(int)
    mirrored = rng.uniform(2, "flip", 1, index=KEYS)[:, 0] < 0.5
    for image, whole, (down, across), flip in zip(made.numpy(), padded, shifts, mirrored, strict=True):
        cut = whole[:, down : down + 12, across : across + 10]
        np.testing.assert_array_equal(image, cut[..., ::-1] if flip else cut)
    inside = black != 0
    assert torch.equal(made[inside], black[inside])
    assert not torch.equal(made, black)


def test_signals_are_moved_along_their_row_alone():
    signals = torch.rand(64, 1, 1, 40)
    made = Transforms(3)(signals, KEYS, 0, 0)
    assert made.shape == signals.shape
    kept = made[:, 0, 0, 3:-3]
    shifts = np.floor(rng.uniform(0, "crop", 0, index=KEYS, count=2)[:, 1] * 7).astype(int)
    for i in range(64):
        assert torch.equal(kept[i], signals[i, 0, 0, shifts[i] : shifts[i] + 34])


# ---- resized crops --------------------------------------------------------------------------------------------------


def test_boxes_have_the_area_and_the_sides_of_a_resized_crop():
    count = 4000
    heights, widths = np.full(count, 300), np.full(count, 400)
    boxes = Transforms(scale=(0.08, 1.0)).boxes(heights, widths, np.arange(count), 0, 0)
    top, left, tall, wide = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 300).all()
    assert (left + wide <= 400).all()
    share, ratio = tall * wide / (300 * 400), wide / tall
    assert 0.078 < share.min() < share.max() <= 1.0
    assert ratio.min() > RATIO[0] * 0.98
    assert ratio.max() < RATIO[1] * 1.02
    # torchvision's own draws have the same quantiles.
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], list(RATIO)) for _ in range(1000)])
    levels = np.linspace(0.1, 0.9, 9)
    difference = np.quantile(boxes, levels, axis=0) - np.quantile(theirs, levels, axis=0)
    assert np.abs(difference).max() < 25


@pytest.mark.parametrize(("height", "width"), [(100, 3000), (3000, 100), (1, 1), (1, 40)])
def test_what_fits_no_box_is_cut_from_its_centre(height, width):
    """As torchvision does where none of ten tries fits."""
    box = Transforms(scale=(0.9, 1.0)).boxes(np.array([height]), np.array([width]), np.array([0]), 0, 0)[0]
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], list(RATIO))
    assert box.tolist() == list(expected)


def test_resized_crops_are_those_of_each_image_alone(images):
    transforms, smooth = Transforms(scale=(0.3, 1.0)), torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2) / 255
    made = transforms.resized_crops(smooth, KEYS, 0, 2)
    boxes = transforms.boxes(np.full(64, 12), np.full(64, 10), KEYS, 0, 2)
    for i in range(64):
        expected = functional.resized_crop(smooth[i], *boxes[i].tolist(), [12, 10], antialias=False)
        # Alike but at the border of the box, where theirs does not look beyond it.
        torch.testing.assert_close(made[i, :, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4, rtol=0)
    whole = Transforms(scale=(1.0, 1.0))
    assert transforms.resized_crops(images, KEYS, 0, 2).dtype == torch.uint8
    square = torch.randint(0, 256, (4, 1, 9, 9), dtype=torch.uint8)
    exact = whole.boxes(np.full(4, 9), np.full(4, 9), KEYS[:4], 0, 0)
    assert (exact[:, 2:] <= 9).all()
    assert whole.resized_crops(square, KEYS[:4], 0, 0).shape == square.shape


def test_bad_options_are_one_line():
    for options, message in (
        ({"crop": -1}, "data.transforms.crop: found -1"),
        ({"crops": 4}, "data.transforms.crops: unknown key: did you mean 'crop'"),
        ({"scale": [0.5]}, "data.transforms.scale"),
    ):
        with pytest.raises(KDBenchError, match=message):
            check("data.transforms", Transforms, options)
    for scale in ((0.0, 1.0), (0.5, 0.2), (0.5, 2.0)):
        with pytest.raises(KDBenchError, match="data.transforms.scale: found .*; expected 0 < least <= greatest <= 1"):
            Transforms(scale=scale)
