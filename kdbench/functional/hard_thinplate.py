"""Thin-plate splines: the smoothest motion of the plane that takes given points to given places."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.hard_affine import grid_positions


def control_points(side: int) -> Tensor:
    """Returns ``side * side`` points spread evenly over an image, its corners among them (K, 2), in float64.

    Example:
        >>> control_points(2).tolist()
        [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """
    return grid_positions(side, side, torch.zeros((), dtype=torch.float64)) * (side / max(side - 1, 1))


def thin_plate_basis(control: Tensor, positions: Tensor) -> Tensor:
    """How much the displacement of each control point displaces each position.

    Bookstein, Principal Warps (IEEE TPAMI 1989): ``f(p) = a + A p + sum_k w_k U(|p - c_k|)``, ``U(r) = r^2 log r^2``,
    has the least bending of all that take every ``c_k`` where it should be. It is linear in the displacements, so that
    those of the positions are ``basis @ displacements``. The system is solved in float64.

    Args:
        control: K control points (K, 2), not all on one line.
        positions: (N, 2).

    Returns:
        (N, K), in the dtype of ``positions``; its rows sum to 1.

    Example:
        >>> corners = control_points(2)
        >>> thin_plate_basis(corners, torch.tensor([[0.0, 0.0]]))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    points = control.double().to(positions.device)
    count = len(points)
    affine = torch.cat([torch.ones_like(points[:, :1]), points], 1)
    system = points.new_zeros(count + 3, count + 3)
    system[:count, :count] = _radial(points, points)
    system[:count, count:], system[count:, :count] = affine, affine.T
    solved = torch.linalg.inv(system)[:, :count]
    where = positions.double()
    described = torch.cat([_radial(where, points), torch.ones_like(where[:, :1]), where], 1)
    return (described @ solved).to(positions.dtype)


def _radial(positions: Tensor, control: Tensor) -> Tensor:
    squared = (positions[:, None] - control).square().sum(2)
    return torch.special.xlogy(squared, squared)
