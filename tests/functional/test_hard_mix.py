from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional.hard_mix import mix_by_weights


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "hard_mix", name, *shape), dtype=torch.float64)


def test_a_cell_for_each_pixel_is_a_plain_loop():
    images, others, weights = noise(2, 3, 4, 5), noise(2, 3, 4, 5, name="other"), noise(2, 4, 5, name="weights")
    found = mix_by_weights(images, others, weights)
    assert (weights.abs() > 1).any()
    for b, c, i, j in np.ndindex(2, 3, 4, 5):
        w = min(abs(weights[b, i, j].item()), 1)
        expected = (1 - w) * images[b, c, i, j].item() + w * others[b, c, i, j].item()
        assert found[b, c, i, j].item() == pytest.approx(expected)


def test_weights_are_bilinear_between_cells():
    found = mix_by_weights(torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4), torch.tensor([[[0.0, 1.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))


def test_zeros_and_ones_give_either_image():
    images, others = noise(2, 1, 4, 4), noise(2, 1, 4, 4, name="other")
    torch.testing.assert_close(mix_by_weights(images, others, torch.zeros(2, 2, 2).double()), images)
    torch.testing.assert_close(mix_by_weights(images, others, torch.ones(2, 2, 2).double()), others)
    assert mix_by_weights(images[:0], others[:0], torch.zeros(0, 2, 2)).shape == (0, 1, 4, 4)


def test_gradients_reach_the_weights():
    images, others, weights = noise(2, 1, 4, 4), noise(2, 1, 4, 4, name="other"), 0.3 * noise(2, 2, 2)
    assert torch.autograd.gradcheck(mix_by_weights, (images, others, weights.requires_grad_()))


def test_low_precision_keeps_the_type_of_the_images():
    images = noise(1, 1, 4, 4).bfloat16()
    assert mix_by_weights(images, images, torch.ones(1, 2, 2)).dtype == torch.bfloat16
