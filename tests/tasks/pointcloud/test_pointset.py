"""Choices among points against plain loops over them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from tasks.pointcloud.pointset import ball_query, dense, evenly, farthest_points, nearest, take


def clouds(samples: int, count: int, name: str = "cloud", dtype: torch.dtype = torch.float32) -> Tensor:
    g = rng.generator(0, name)
    return (torch.rand(samples, count, 3, generator=g, dtype=torch.float64) * 4).to(dtype)


def slow_farthest(xyz: Tensor, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        apart = [min(float(((p - xyz[c]) ** 2).sum()) for c in chosen) for p in xyz]
        chosen.append(max(range(len(xyz)), key=lambda i: (apart[i], -i)))
    return chosen


def slow_ball(xyz: Tensor, centre: Tensor, radius: float, number: int) -> list[int]:
    found = [i for i, p in enumerate(xyz) if float(((p - centre) ** 2).sum()) < radius**2][:number]
    return (found + [found[0]] * number)[:number] if found else [0] * number


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_farthest_points_are_those_of_a_loop(dtype):
    xyz = clouds(3, 40, dtype=dtype)
    found = farthest_points(xyz, 15)
    assert found.dtype == torch.long
    assert found.tolist() == [slow_farthest(cloud, 15) for cloud in xyz]


def test_farthest_points_of_a_lattice_take_the_first_of_equals():
    axis = torch.arange(3.0)
    xyz = torch.cartesian_prod(axis, axis, axis)[None]
    assert farthest_points(xyz, 27).tolist() == [slow_farthest(xyz[0], 27)]
    assert sorted(farthest_points(xyz, 27)[0].tolist()) == list(range(27))


def test_more_choices_than_points_repeat_some():
    xyz = clouds(1, 4)
    assert farthest_points(xyz, 6).tolist() == [slow_farthest(xyz[0], 6)]


@pytest.mark.parametrize("block", [1 << 24, 100])
def test_balls_are_those_of_a_loop(block, monkeypatch):
    monkeypatch.setattr("tasks.pointcloud.pointset._BLOCK", block)
    xyz = clouds(2, 60, dtype=torch.float64)
    centres = torch.cat([xyz[:, 10:25], clouds(2, 5, "centres", torch.float64) + 2], 1)  # some with nothing near
    radii, samples = (0.5, 1.2, 9.0), (4, 8, 70)
    found = ball_query(xyz, centres, radii, samples)
    for index, radius, number in zip(found, radii, samples, strict=True):
        expected = [[slow_ball(x, c, radius, number) for c in cs] for x, cs in zip(xyz, centres, strict=True)]
        assert index.tolist() == expected
    assert any(len(set(ball)) == 1 for ball in found[0][0].tolist())
    assert any(len(set(ball)) == 8 for ball in found[1][0].tolist())


def test_far_from_the_origin_balls_hold_what_is_near():
    """As products of coordinates, distances of centimetres would drown at 70 m."""
    xyz = clouds(1, 200) * 0.05 + torch.tensor([70.0, -40.0, 1.0])
    (found,) = ball_query(xyz, xyz, [0.05], [200])
    apart = (xyz[0, :, None].double() - xyz[0].double()).norm(dim=-1)
    for ball, distances in zip(found[0], apart, strict=True):
        assert set(ball.tolist()) == set((distances < 0.05).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("sources", [20, 2])
def test_nearest_are_those_of_a_sort(sources):
    targets, few = clouds(2, 30, dtype=torch.float64), clouds(2, sources, "few", torch.float64)
    distance, index = nearest(targets, few)
    apart = (targets[:, :, None] - few[:, None]).norm(dim=-1)
    expected, order = apart.sort(-1)
    assert index.equal(order[..., :3])
    torch.testing.assert_close(distance, expected[..., :3])


def test_rows_are_taken_by_sample():
    values = clouds(3, 10)
    index = torch.randint(10, (3, 4, 5), generator=rng.generator(0, "index"))
    found = take(values, index)
    for sample in range(3):
        assert found[sample].equal(values[sample][index[sample]])


def test_picks_are_spread_evenly():
    assert evenly(torch.tensor([4, 8, 3, 0]), 4).tolist() == [[0, 1, 2, 3], [0, 2, 4, 6], [0, 0, 1, 2], [0, 0, 0, 0]]


def test_a_ragged_batch_becomes_dense():
    points = torch.arange(1.0, 14)[:, None].repeat(1, 4)
    batch = torch.tensor([0] * 8 + [2] * 5)
    found = dense(points, batch, 4, 4)[..., 0]
    assert found.tolist() == [[1, 3, 5, 7], [0, 0, 0, 0], [9, 10, 11, 12], [0, 0, 0, 0]]
    assert dense(points[:0], batch[:0], 2, 4).tolist() == torch.zeros(2, 4, 4).tolist()
    assert dense(points, batch, 3, 16)[2, :, 0].unique().tolist() == [9, 10, 11, 12, 13]


def test_gradients_of_all_rows_taken_arrive():
    values = clouds(2, 5).requires_grad_()
    take(values, torch.tensor([[0, 0, 3], [1, 2, 4]])).sum().backward()
    assert values.grad is not None
    assert values.grad[..., 0].tolist() == [[2, 0, 0, 1, 0], [0, 1, 1, 0, 1]]
