from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.hard_color import color_affine, sliced_wasserstein
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def uniform(*shape: int, name: str = "") -> torch.Tensor:
    return torch.rand(shape, generator=rng.generator(0, "hard_color", name, *shape), dtype=torch.float64)


def test_colours_are_those_of_a_plain_loop():
    pixels, scale, shift = uniform(2, 3, 4, 5), uniform(2, 3, name="a") - 0.5, uniform(2, 3, name="b") - 0.5
    found = color_affine(pixels, scale, shift)
    for at in np.ndindex(*pixels.shape):
        value = (1 + scale[at[:2]].item()) * pixels[at].item() + shift[at[:2]].item()
        assert found[at].item() == pytest.approx(min(max(value, 0), 1))
    assert 0 in found
    assert torch.equal(color_affine(pixels, torch.zeros(2, 3), torch.zeros(2, 3)), pixels)


def test_gradients_reach_scale_and_shift():
    pixels = 0.25 + 0.5 * uniform(2, 3, 4, 4)
    by = [(0.1 * (uniform(2, 3, name=name) - 0.5)).requires_grad_() for name in "ab"]
    assert torch.autograd.gradcheck(color_affine, (pixels, *by))


def test_the_distance_is_that_of_sorted_projections():
    first, second, directions = uniform(3, 2, 4, 4), uniform(3, 2, 4, 4, name="other"), uniform(5, 2, name="d") - 0.5
    squares = []
    for x, y in zip(first, second, strict=True):
        for direction in directions.numpy():
            unit = direction / np.linalg.norm(direction)
            along = [np.sort((unit[:, None, None] * z.numpy()).sum(0).ravel()) for z in (x, y)]
            squares.append(np.mean((along[0] - along[1]) ** 2))
    assert sliced_wasserstein(first, second, directions).item() == pytest.approx(np.mean(squares), rel=1e-6)


def test_a_constant_shift_is_its_square_and_scipy_agrees_on_its_size():
    image = uniform(1, 1, 3, 3)
    distance = sliced_wasserstein(image, image + 0.25, torch.ones(1, 1))
    assert distance.sqrt().item() == pytest.approx(0.25, rel=1e-5)
    assert distance.sqrt().item() == pytest.approx(wasserstein_distance(image.flatten(), image.flatten() + 0.25))


def test_the_order_of_pixels_does_not_count():
    image, directions = uniform(2, 3, 4, 4), uniform(4, 3, name="d")
    assert sliced_wasserstein(image, image.flip(3), directions).item() == pytest.approx(0, abs=1e-12)


def test_what_holds_of_every_loss():
    images, directions = uniform(2, 3, 4, 4), uniform(4, 3, name="d")
    check_low_precision(sliced_wasserstein, images.float(), images.float() + 0.3, directions.float())
    check_autocast(sliced_wasserstein, images, images + 0.3, directions)
    check_empty(sliced_wasserstein, (0, 3, 2, 2), (0, 3, 2, 2), directions=directions.float())
    with pytest.raises(KDBenchError, match="expected equal shapes"):
        sliced_wasserstein(images, images[:1], directions)
