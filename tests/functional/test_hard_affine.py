"""Against ``affine_grid`` of torch, a plain loop over pixels, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.hard_affine import affine_positions, grid_positions, sample_images


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "hard_affine", name, *shape), dtype=torch.float64)


def moved(images: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    size = (images.shape[2], images.shape[3])
    return sample_images(images, affine_positions(grid_positions(size[0], size[1], images), deviation), size)


@pytest.mark.parametrize("size", [(1, 5), (4, 3), (7, 7)])
def test_positions_are_those_of_an_affine_grid(size):
    deviation = 0.3 * noise(3, 6)
    found = affine_positions(grid_positions(size[0], size[1], deviation), deviation)
    theta = torch.eye(2, 3, dtype=torch.float64) + deviation.view(3, 2, 3)
    expected = F.affine_grid(theta, [3, 1, *size], align_corners=False).view(3, -1, 2)
    torch.testing.assert_close(found, expected)


def reference(image: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """One pixel at a time: from the centre of a pixel to where it comes from, bilinear, edges repeated."""
    height, width = image.shape
    found = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x, y = theta @ [(2 * j + 1) / width - 1, (2 * i + 1) / height - 1, 1]
            column = min(max(((x + 1) * width - 1) / 2, 0), width - 1)
            row = min(max(((y + 1) * height - 1) / 2, 0), height - 1)
            left, top = min(math.floor(column), width - 2), min(math.floor(row), height - 2)
            across, down = column - left, row - top
            rows = image[top : top + 2, left : left + 2]
            found[i, j] = np.array([1 - down, down]) @ rows @ np.array([1 - across, across])
    return found


def test_images_are_those_of_a_plain_loop():
    images, deviation = noise(4, 1, 5, 6, name="images"), 0.4 * noise(4, 6, name="by")
    found = moved(images, deviation)
    for image, by, of in zip(images, deviation, found, strict=True):
        theta = np.eye(2, 3) + by.view(2, 3).numpy()
        np.testing.assert_allclose(of[0].numpy(), reference(image[0].numpy(), theta), atol=1e-10)


def test_zeros_leave_an_image_as_it_is():
    images = noise(2, 3, 6, 5).float()
    torch.testing.assert_close(moved(images, torch.zeros(2, 6)), images, atol=1e-5, rtol=0)


def test_a_shift_of_whole_pixels_moves_pixels():
    images = noise(1, 2, 4, 8)
    by = torch.zeros(1, 6, dtype=torch.float64)
    by[0, 2] = 2 / 8 * 3  # a pixel is 2 / 8 of the width from -1 to 1
    torch.testing.assert_close(moved(images, by)[..., :5], images[..., 3:])
    torch.testing.assert_close(moved(images, by)[..., 5:], images[..., -1:].expand(-1, -1, -1, 3))


def test_gradients_are_those_of_finite_differences():
    images, by = noise(2, 1, 5, 4), 0.1 * noise(2, 6, name="by")
    assert torch.autograd.gradcheck(moved, (images.requires_grad_(), by.requires_grad_()), eps=1e-7, atol=1e-5)


def test_a_batch_of_one_and_none():
    images = noise(3, 1, 4, 4)
    by = 0.2 * noise(3, 6, name="by")
    torch.testing.assert_close(moved(images[:1], by[:1]), moved(images, by)[:1])
    assert moved(images[:0], by[:0]).shape == (0, 1, 4, 4)


def test_autocast_leaves_positions_exact():
    by = (0.3 * noise(2, 6)).float()
    expected = affine_positions(grid_positions(5, 5, by), by)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(affine_positions(grid_positions(5, 5, by), by), expected)


def test_low_precision_keeps_the_type_of_the_images():
    images = noise(1, 1, 4, 4).bfloat16()
    positions = grid_positions(4, 4, torch.zeros(()))[None]
    assert sample_images(images, positions, (4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_what_is_not_finite_is_neither_in_the_result(value, mode):
    images = noise(1, 1, 3, 3).float().requires_grad_()
    positions = grid_positions(3, 3, torch.zeros(()))[None].clone()
    positions[0, 4, 1] = value
    found = sample_images(images, positions.requires_grad_(), (3, 3), mode)
    assert found.isnan().flatten().tolist() == [i == 4 for i in range(9)]
    found.sum().backward()
    assert images.grad is not None


def test_positions_far_away_are_those_of_the_edge():
    images = noise(1, 1, 3, 3).float().requires_grad_()
    found = sample_images(images, torch.tensor([[[3e38, -3e38]]]), (1, 1))
    assert found.item() == images[0, 0, 0, 2].item()
    found.sum().backward()


def test_other_numbers_are_refused():
    with pytest.raises(KDBenchError, match=r"found deviations of shape \(2, 5\), expected \(B, 6\)"):
        affine_positions(torch.zeros(1, 2), torch.zeros(2, 5))
