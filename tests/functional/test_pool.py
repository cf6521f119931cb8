from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.pool import average_pool, global_average, pool_to_smaller, resize


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, "pool", *shape), dtype=torch.float64)


@pytest.mark.parametrize("space", [(4,), (4, 6), (2, 4, 6)])
def test_averages(space):
    grid = torch.randn(2, 3, *space, generator=rng.generator(0, "pool", *space))
    halves = grid
    for axis, n in enumerate(space):
        halves = halves.unflatten(2 + axis, (n // 2, 2)).mean(3 + axis)
    torch.testing.assert_close(average_pool(grid, [n // 2 for n in space]), halves)
    torch.testing.assert_close(average_pool(grid, [1] * len(space)).flatten(1), global_average(grid))
    assert average_pool(grid, space) is grid
    vector = grid.flatten(2)[..., 0]
    assert global_average(vector) is vector


@pytest.mark.parametrize("space", [(4,), (4, 6), (2, 4, 6)])
def test_resizing_is_linear(space):
    """A ramp along each axis stays one, at the centres of the new cells; beyond the outer centres it is level."""
    for axis, n in enumerate(space):
        shape = [n if i == axis else 1 for i in range(len(space))]
        ramp = torch.arange(n, dtype=torch.float64).view(1, 1, *shape).expand(1, 1, *space)
        larger = resize(ramp, [2 * m for m in space])
        centres = ((torch.arange(2 * n) + 0.5) / 2 - 0.5).clamp(0, n - 1).double()
        torch.testing.assert_close(larger.movedim(2 + axis, -1).reshape(-1, 2 * n)[0], centres)
    assert resize(ramp, space) is ramp


@pytest.mark.parametrize("space", [(4,), (4, 6), (4, 6, 2)])
def test_grids_of_one_size_are_left_as_they_are(space):
    first, second = noise(2, 3, *space), noise(2, 5, *space)
    assert all(a is b for a, b in zip(pool_to_smaller(first, second), (first, second), strict=True))


def test_each_axis_takes_its_smaller_size():
    tall, wide = noise(2, 3, 4, 3), noise(2, 5, 2, 6)
    first, second = pool_to_smaller(tall, wide)
    torch.testing.assert_close(first, tall.unflatten(2, (2, 2)).mean(3))
    torch.testing.assert_close(second, wide.unflatten(3, (3, 2)).mean(4))
    deep, _ = pool_to_smaller(noise(1, 1, 4, 2, 2), noise(1, 1, 2, 2, 2))
    torch.testing.assert_close(deep, noise(1, 1, 4, 2, 2).unflatten(2, (2, 2)).mean(3))


def test_empty_batches_keep_the_graph():
    first = torch.zeros(0, 3, 4, 4, requires_grad=True)
    pooled, _ = pool_to_smaller(first, torch.zeros(0, 3, 2, 2))
    assert pooled.shape == (0, 3, 2, 2)
    assert pooled.requires_grad


def test_errors():
    with pytest.raises(KDBenchError, match=r"ab: found shapes \(2, 3, 4\) and \(1, 3, 4\), expected two grids"):
        pool_to_smaller(torch.zeros(2, 3, 4), torch.zeros(1, 3, 4), "ab")
    with pytest.raises(KDBenchError, match="1 to 3 spatial axes"):
        pool_to_smaller(torch.zeros(2, 3), torch.zeros(2, 3))
