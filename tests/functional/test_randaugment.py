from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import TrivialAugmentWide, functional

from kdbench.functional.randaugment import BINS, MOVES, operations, rand_augment, trivial_augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (1, 1, 40), (3, 32, 20)])
def test_rand_augment_is_that_of_each_image_alone(shape):
    """Image by image, with the operations that were drawn for it one after the other."""
    images = torch.rand(40, *shape, generator=generator())
    made = rand_augment(images, generator(1))
    chosen = list(operations(shape[0], shape[1]).values())
    drawn = torch.randint(2 * len(chosen), (2, 40), generator=generator(1))
    for i in range(40):
        expected = images[i : i + 1]
        for value in drawn[:, i].tolist():
            apply, (strength, _), signed = chosen[value // 2]
            expected = apply(expected, (-1 if signed and value % 2 else 1) * 0.3 * strength)
        torch.testing.assert_close(made[i : i + 1], expected, atol=2e-3, rtol=0)
    assert made.dtype == torch.float32
    assert 0 <= made.min() <= made.max() <= 1
    changed = (made != images).flatten(1).any(1).float().mean()
    assert changed > 0.7
    assert torch.equal(made, rand_augment(images, generator(1)))
    assert not torch.equal(made, rand_augment(images, generator(2)))


def test_rand_augment_of_one_image_and_of_none():
    image = torch.rand(1, 3, 8, 8)
    assert rand_augment(image, generator()).shape == image.shape
    assert rand_augment(image[:0], generator()).shape == (0, 3, 8, 8)
    assert torch.equal(rand_augment(image, generator(), number=0), image)


@pytest.mark.parametrize("name", operations(3, 32))
def test_each_operation_is_torchvisions(name):
    """At magnitude 9 of 30 on one RGB image, against the functional that RandAugment calls with its own numbers."""
    image = torch.rand(1, 3, 32, 32, generator=generator(3))
    apply, (strength, _), _ = operations(3, 32)[name]
    made = apply(image, 0.3 * strength)
    shear = [np.degrees(np.arctan(0.09)), 0.0]
    expected = {
        "identity": lambda: image,
        "translate_x": lambda: functional.affine(image, 0.0, [round(0.3 * 150 / 331 * 32), 0], 1.0, [0.0, 0.0]),
        "translate_y": lambda: functional.affine(image, 0.0, [0, round(0.3 * 150 / 331 * 32)], 1.0, [0.0, 0.0]),
        "shear_x": lambda: functional.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0]),
        "shear_y": lambda: functional.affine(image, 0.0, [0, 0], 1.0, shear[::-1], center=[0, 0]),
        "rotate": lambda: functional.rotate(image, -9.0),
        "brightness": lambda: functional.adjust_brightness(image, 1.27),
        "color": lambda: functional.adjust_saturation(image, 1.27),
        "contrast": lambda: functional.adjust_contrast(image, 1.27),
        "sharpness": lambda: functional.adjust_sharpness(image, 1.27),
        "posterize": lambda: functional.posterize(image, 7),
        "solarize": lambda: functional.solarize(image, 0.7),
        "autocontrast": lambda: functional.autocontrast(image),
        "equalize": lambda: functional.equalize(image),
    }[name]()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert (name == "identity") == torch.equal(made, image)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 40)])
def test_trivial_augment_is_one_operation_of_each_image_with_the_strength_of_its_group(shape):
    images = torch.rand(60, *shape, generator=generator())
    made = trivial_augment(images, generator(1))
    chosen, stream = list(operations(shape[0], shape[1]).values()), generator(1)
    drawn = torch.randint(2 * len(chosen), (60,), generator=stream)
    strengths = torch.randint(BINS, (2 * len(chosen),), generator=stream) / (BINS - 1)
    for i, value in enumerate(drawn.tolist()):
        apply, (_, strength), signed = chosen[value // 2]
        sign = -1 if signed and value % 2 else 1
        expected = apply(images[i : i + 1], sign * float(strengths[value]) * strength).clamp(0, 1)
        torch.testing.assert_close(made[i : i + 1], expected, atol=2e-3, rtol=0)
    assert trivial_augment(images[:1], generator()).shape == (1, *shape)
    assert trivial_augment(images[:0], generator()).shape == (0, *shape)


def test_the_wide_space_is_torchvisions():
    wide = {
        name: TrivialAugmentWide._AUGMENTATION_SPACE[key][0](BINS, 224, 224)
        for name, key in {
            "shear_x": "ShearX",
            "rotate": "Rotate",
            "color": "Color",
            "translate_x": "TranslateX",
        }.items()
    }
    for name, strengths in wide.items():
        factor = 224 if name == "translate_x" else 1
        assert float(strengths.max()) == pytest.approx(factor * operations(3, 32)[name][1][1], rel=1e-6)
    assert set(TrivialAugmentWide._AUGMENTATION_SPACE) == {
        "".join(part.title() for part in name.split("_")).replace("Autoc", "AutoC") for name in operations(3, 32)
    }


def test_without_moves_every_position_stays_where_it_is():
    images = torch.zeros(200, 3, 8, 8)
    images[:, :, 2, 5] = 1
    assert set(operations(3, 8)) - set(operations(3, 8, moves=False)) == MOVES
    for made in (rand_augment(images, generator(), moves=False), trivial_augment(images, generator(), moves=False)):
        spot, rest = made[:, :, 2, 5].mean(1), made.mean(1).flatten(1)
        rest[:, 2 * 8 + 5] = rest[:, 0]
        assert (((rest - rest[:, :1]).abs() < 0.25).all(1) | (spot == rest[:, 0])).all()
