from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.functional.hard_free import root_mean_square, within_norm


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "hard_free", *shape), dtype=torch.float64)


def test_it_is_the_nearest_change_within_the_bound():
    change = torch.cat([3 * noise(2, 3, 4, 4), 0.1 * noise(1, 3, 4, 4)])
    found = within_norm(change, 0.5)
    sizes = np.sqrt((change.numpy() ** 2).mean((1, 2, 3)))
    for given, made, size in zip(change, found, sizes, strict=True):
        torch.testing.assert_close(made, given * min(1, 0.5 / size))
    np.testing.assert_allclose(root_mean_square(found).numpy(), np.minimum(sizes, 0.5))
    torch.testing.assert_close(within_norm(found, 0.5), found)


def test_zero_has_a_finite_gradient():
    change = torch.zeros(2, 1, 3, 3, requires_grad=True)
    (within_norm(change, 1.0).sum() + root_mean_square(change).sum()).backward()
    assert change.grad is not None
    torch.testing.assert_close(change.grad, torch.ones(2, 1, 3, 3))


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda x: within_norm(x, 0.7), (noise(3, 1, 2, 2).requires_grad_(),))


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count):
    assert within_norm(noise(count, 1, 2, 2), 1.0).shape == (count, 1, 2, 2)
