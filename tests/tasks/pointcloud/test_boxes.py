from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from shapely import Polygon

from kdbench.base import rng
from tasks.pointcloud import boxes as B

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def random_bev(n: int, *names: str | int, spread: float = 8.0) -> torch.Tensor:
    g = rng.generator(0, "boxes", *names)
    xy = torch.rand(n, 2, generator=g, dtype=torch.float64) * spread
    size = torch.rand(n, 2, generator=g, dtype=torch.float64) * 4 + 0.1
    yaw = (torch.rand(n, 1, generator=g, dtype=torch.float64) - 0.5) * 12
    # A third along the axes, where edges are parallel or meet at right angles.
    yaw[::3] = (yaw[::3] / (math.pi / 2)).round() * (math.pi / 2)
    return torch.cat((xy, size, yaw), 1)


def random_3d(n: int, *names: str | int) -> torch.Tensor:
    g = rng.generator(0, "3d", *names)
    flat = random_bev(n, *names)
    z = torch.rand(n, 1, generator=g, dtype=torch.float64) * 2
    h = torch.rand(n, 1, generator=g, dtype=torch.float64) * 2 + 0.5
    return torch.cat((flat[:, :2], z, flat[:, 2:4], h, flat[:, 4:]), 1)


def polygon(box: torch.Tensor) -> Polygon:
    """Built without the code under test."""
    x, y, length, width, yaw = box.tolist()
    ahead = np.array([math.cos(yaw), math.sin(yaw)])
    left = np.array([-math.sin(yaw), math.cos(yaw)])
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return Polygon([np.array([x, y]) + a * length / 2 * ahead + b * width / 2 * left for a, b in signs])


def shapely_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    left, right = [polygon(r) for r in a], [polygon(r) for r in b]
    shared = np.array([[p.intersection(q).area for q in right] for p in left])
    first, second = np.array([p.area for p in left])[:, None], np.array([q.area for q in right])
    return torch.from_numpy(shared / (first + second - shared))


def greedy(iou: torch.Tensor, scores: torch.Tensor, threshold: float, labels: torch.Tensor | None = None) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda k: (-scores[k].item(), k)):
        rivals = [k for k in kept if labels is None or labels[k] == labels[i]]
        if all(iou[i, k] <= threshold for k in rivals):
            kept.append(i)
    return kept


def test_bev_corners_are_counter_clockwise_and_where_they_belong() -> None:
    boxes = random_bev(20)
    found = B.bev_corners(boxes)
    assert found.shape == (20, 4, 2)
    for box, corner in zip(boxes, found, strict=True):
        shape = Polygon(corner.numpy())
        assert shape.exterior.is_ccw
        assert shape.symmetric_difference(polygon(box)).area < 1e-10


def test_corners_stack_the_bev_corners_at_bottom_and_top() -> None:
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 6.0, math.pi / 2]], dtype=torch.float64)
    expected = torch.tensor([[0, 4], [0, 0], [2, 0], [2, 4]], dtype=torch.float64)
    found = B.corners(box)[0]
    torch.testing.assert_close(found[:4, :2], expected)
    torch.testing.assert_close(found[4:, :2], expected)
    assert found[:, 2].tolist() == [0.0] * 4 + [6.0] * 4


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_rotated_iou_equals_polygon_intersection(dtype, tolerance) -> None:
    a, b = random_bev(60, "a"), random_bev(50, "b")
    expected = shapely_iou(a, b)
    assert 0.1 < (expected > 0).double().mean() < 0.9
    found = B.rotated_iou_bev(a.to(dtype), b.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


def test_aligned_compares_row_with_row() -> None:
    a, b = random_bev(50, "a", spread=4.0), random_bev(50, "b", spread=4.0)
    torch.testing.assert_close(B.rotated_iou_bev(a, b, aligned=True), shapely_iou(a, b).diagonal(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("turn", [0.0, math.pi / 2, math.pi, -math.pi, 5 * math.pi / 2, 0.3])
def test_degenerate_pairs(turn, dtype, tolerance) -> None:
    a = torch.tensor([10.0, -20.0, 4.0, 2.0, turn], dtype=dtype).expand(8, 5)
    c, s = math.cos(turn), math.sin(turn)
    cases = [  # offset along, offset across, l, w, extra yaw, IoU
        (0, 0, 4, 2, 0, 1.0),  # identical
        (0, 0, 4, 2, math.pi, 1.0),  # turned round
        (0, 0, 2, 4, math.pi / 2, 1.0),  # sides exchanged
        (4, 0, 4, 2, 0, 0.0),  # touching edges
        (4, 2, 4, 2, 0, 0.0),  # touching corners
        (1, 0, 2, 1, 0, 0.25),  # inside, sharing a part of an edge
        (0, 0, 0, 2, 0, 0.0),  # no length
        (2, 0, 4, 2, 0, 1 / 3),  # collinear edges
    ]
    rows = [(10 + x * c - y * s, -20 + x * s + y * c, length, w, turn + yaw) for x, y, length, w, yaw, _ in cases]
    b = torch.tensor(rows, dtype=dtype)
    expected = torch.tensor([case[-1] for case in cases], dtype=dtype)
    for first, second in ((a, b), (b, a)):
        found = B.rotated_iou_bev(first, second, aligned=True)
        torch.testing.assert_close(found, expected, atol=max(tolerance, 1e-12), rtol=0)


def test_boxes_without_area_overlap_nothing() -> None:
    empty = torch.zeros(3, 5)
    assert B.rotated_iou_bev(empty, empty).eq(0).all()
    assert B.iou_3d(torch.zeros(2, 7), torch.zeros(2, 7)).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_boxes_apart_overlap_by_exactly_zero(dtype) -> None:
    a, b = random_bev(90, "a"), random_bev(80, "b")
    apart = torch.tensor([[polygon(p).distance(polygon(q)) > 1e-3 for q in b] for p in a])
    assert (B.rotated_iou_bev(a.to(dtype), b.to(dtype))[apart] == 0).all()


def test_an_overlap_never_exceeds_one_and_identical_boxes_reach_it() -> None:
    boxes = random_bev(500).float()
    iou = B.rotated_iou_bev(boxes, boxes)
    assert iou.max() <= 1
    torch.testing.assert_close(iou.diagonal(), torch.ones(500))
    torch.testing.assert_close(iou, iou.T, atol=1e-5, rtol=0)


def test_no_boxes_give_empty_results() -> None:
    some, none = random_bev(3), torch.zeros(0, 5, dtype=torch.float64)
    assert B.rotated_iou_bev(some, none).shape == (3, 0)
    assert B.rotated_iou_bev(none, some).shape == (0, 3)
    assert B.rotated_iou_bev(none, none, aligned=True).shape == (0,)
    assert B.iou_3d(torch.zeros(0, 7), torch.zeros(2, 7)).shape == (0, 2)
    assert B.rotated_nms(none, torch.zeros(0), 0.5).tolist() == []


def test_the_distance_test_in_blocks_changes_nothing(monkeypatch) -> None:
    a, b = random_bev(37, "a"), random_bev(20, "b")
    whole = B.rotated_iou_bev(a, b)
    monkeypatch.setattr(B, "_PAIRS_PER_BLOCK", 100)
    assert torch.equal(B.rotated_iou_bev(a, b), whole)


def test_overlap_has_the_gradient_of_the_area() -> None:
    a = torch.tensor([[0.3, 0.2, 4.0, 2.0, 0.4]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 3.0, 2.5, -0.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: B.rotated_iou_bev(x, b, aligned=True), (a,))


def test_iou_3d_is_the_bev_intersection_times_the_common_height() -> None:
    a, b = random_3d(40, "a"), random_3d(30, "b")
    expected = torch.zeros(40, 30, dtype=torch.float64)
    for i in range(40):
        for j in range(30):
            p, q = a[i].tolist(), b[j].tolist()
            area = polygon(a[i][[0, 1, 3, 4, 6]]).intersection(polygon(b[j][[0, 1, 3, 4, 6]])).area
            tall = min(p[2] + p[5] / 2, q[2] + q[5] / 2) - max(p[2] - p[5] / 2, q[2] - q[5] / 2)
            shared, one, two = area * max(tall, 0.0), math.prod(p[3:6]), math.prod(q[3:6])
            expected[i, j] = shared / (one + two - shared)
    assert (expected > 0).sum() > 100
    torch.testing.assert_close(B.iou_3d(a, b), expected, atol=1e-12, rtol=0)
    aligned = B.iou_3d(a[:30], b, aligned=True)
    torch.testing.assert_close(aligned, expected[:30].diagonal(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_nms_is_the_greedy_choice(threshold) -> None:
    boxes = random_bev(120)
    scores = (torch.rand(120, generator=rng.generator(0, "scores")) * 20).round() / 20  # many ties
    labels = torch.randint(0, 3, (120,), generator=rng.generator(0, "labels"))
    iou = shapely_iou(boxes, boxes)
    expected = greedy(iou, scores, threshold)
    assert 5 < len(expected) < 120
    assert B.rotated_nms(boxes, scores, threshold).tolist() == expected
    assert B.rotated_nms(boxes, scores, threshold, max_keep=4).tolist() == expected[:4]
    by_class = greedy(iou, scores, threshold, labels)
    assert len(by_class) > len(expected)
    assert B.rotated_nms(boxes, scores, threshold, labels=labels).tolist() == by_class


def test_nms_follows_a_long_chain_of_suppressions() -> None:
    n = 40  # each overlaps only its neighbours: every second one stays
    boxes = torch.tensor([[k * 1.0, 0.0, 1.5, 1.0, 0.0] for k in range(n)])
    scores = torch.linspace(1, 0, n)
    assert B.rotated_nms(boxes, scores, 0.1).tolist() == list(range(0, n, 2))


def test_limit_period() -> None:
    values = torch.linspace(-20, 20, 101, dtype=torch.float64)
    wrapped = B.limit_period(values)
    assert (wrapped >= -math.pi / 2).all()
    assert (wrapped < math.pi / 2).all()
    torch.testing.assert_close(((values - wrapped) / math.pi).round() * math.pi, values - wrapped)
    assert B.limit_period(torch.tensor(-0.5), offset=0.0, period=1.0) == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu() -> None:
    a, b = random_bev(60, "a"), random_bev(50, "b")
    torch.testing.assert_close(B.rotated_iou_bev(a.cuda(), b.cuda()).cpu(), B.rotated_iou_bev(a, b))
    scores = torch.rand(60, generator=rng.generator(0, "scores"))
    assert torch.equal(B.rotated_nms(a.cuda(), scores.cuda(), 0.1).cpu(), B.rotated_nms(a, scores, 0.1))
