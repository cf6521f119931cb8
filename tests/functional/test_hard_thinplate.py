"""Against a float64 solve of Bookstein's equations for each sample, and against SciPy's interpolator.

kornia's ``get_tps_transform`` is no reference: it has its kernels at the places where the points go, which is another
function through them than the one of least bending.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from kdbench.base import rng
from kdbench.functional.hard_affine import grid_positions
from kdbench.functional.hard_thinplate import control_points, thin_plate_basis


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "hard_thinplate", *shape), dtype=torch.float64)


def reference(control: np.ndarray, targets: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Solves for the weights of one sample and sums them position by position."""

    def u(r: np.floating[Any]) -> float:
        return 0.0 if r == 0 else float(r**2 * np.log(r**2))

    count = len(control)
    system, right = np.zeros((count + 3, count + 3)), np.zeros((count + 3, 2))
    for i in range(count):
        for k in range(count):
            system[i, k] = u(np.linalg.norm(control[i] - control[k]))
        system[i, count:] = system[count:, i] = [1, *control[i]]
        right[i] = targets[i]
    solved = np.linalg.solve(system, right)
    found = []
    for p in positions:
        value = solved[count] + p @ solved[count + 1 :]
        for k in range(count):
            value = value + solved[k] * u(np.linalg.norm(p - control[k]))
        found.append(value)
    return np.array(found)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_it_is_the_spline_through_the_points(side):
    control, positions = control_points(side), grid_positions(6, 5, torch.zeros((), dtype=torch.float64))
    moves = 0.2 * noise(side * side, 2)
    found = positions + thin_plate_basis(control, positions) @ moves
    expected = reference(control.numpy(), (control + moves).numpy(), positions.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_it_is_the_spline_of_scipy():
    control, positions = control_points(4), grid_positions(6, 5, torch.zeros((), dtype=torch.float64))
    moves = 0.2 * noise(16, 2)
    spline = RBFInterpolator(control.numpy(), (control + moves).numpy(), kernel="thin_plate_spline", degree=1)
    found = positions + thin_plate_basis(control, positions) @ moves
    np.testing.assert_allclose(found.numpy(), spline(positions.numpy()), atol=1e-9)


def test_control_points_go_where_they_should():
    control, moves = control_points(4), noise(16, 2)
    torch.testing.assert_close(thin_plate_basis(control, control) @ moves, moves)


def test_an_affine_move_of_the_points_is_one_of_all():
    control, positions = control_points(3), grid_positions(3, 7, torch.zeros((), dtype=torch.float64))
    matrix, shift = noise(2, 2), noise(1, 2)
    found = thin_plate_basis(control, positions) @ (control @ matrix + shift)
    torch.testing.assert_close(found, positions @ matrix + shift)


def test_no_positions_and_the_type_of_those_given():
    assert thin_plate_basis(control_points(3), torch.zeros(0, 2)).shape == (0, 9)
    basis = thin_plate_basis(control_points(3), grid_positions(2, 2, torch.zeros(())))
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis.sum(1), torch.ones(4))


def test_control_points_span_the_image():
    points = control_points(3)
    assert points.shape == (9, 2)
    assert points.amin(0).tolist() == [-1, -1]
    assert points.amax(0).tolist() == [1, 1]
