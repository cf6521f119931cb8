from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud.anchors import (
    BACKGROUND,
    IGNORED,
    KITTI_ANCHORS,
    AnchorClass,
    Anchors,
    assign_per_class,
    decode,
    encode,
    heading_bin,
    with_heading,
)
from tasks.pointcloud.boxes import limit_period, to_bev

RANGE = (0.0, -10.24, -3.0, 15.36, 10.24, 1.0)
GRID = (32, 24)  # cells of 0.64 m, (y, x)
FINE = (64, 48)


def random_boxes(anchors: Anchors, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes of a class's size give or take a fifth, some with a centre beyond the grid."""
    g = rng.generator(seed, "boxes")
    labels = torch.randint(len(anchors.classes), (count,), generator=g)
    u = torch.rand(count, 7, generator=g)
    centre = u[:, :3] * torch.tensor([17.0, 22.0, 1.0]) - torch.tensor([1.0, 11.0, 1.0])
    yaw = u[:, 6:] * 0.3 + torch.randint(-4, 5, (count, 1), generator=g) * math.pi / 2
    return torch.cat([centre, anchors.sizes[labels] * (0.8 + 0.4 * u[:, 3:6]), yaw], 1), labels


def nearest_bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (N, 7) and (M, 7) turned to the nearest of 0 and 90 degrees, from the corners of each."""
    corners = []
    for boxes in (a, b):
        bev = to_bev(boxes)
        across = limit_period(bev[:, 4]).abs() > math.pi / 4
        half = torch.where(across[:, None], bev[:, [3, 2]], bev[:, 2:4]) / 2
        corners.append((bev[:, :2] - half, bev[:, :2] + half))
    (a_low, a_high), (b_low, b_high) = corners
    low, high = torch.maximum(a_low[:, None], b_low), torch.minimum(a_high[:, None], b_high)
    shared = (high - low).clamp(min=0).prod(2)
    areas = [boxes[:, 3] * boxes[:, 4] for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def assign_slowly(anchors: Anchors, boxes: Tensor, labels: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Max-IoU assignment box by box and anchor by anchor, from the full IoU matrix."""
    table = [KITTI_ANCHORS[name] for name in anchors.classes]
    matched = torch.full((batch_size, len(anchors)), BACKGROUND)
    kinds = torch.arange(len(anchors)) // 2 % len(table)
    for sample in range(batch_size):
        for kind, anchor_class in enumerate(table):
            mine = ((batch == sample) & (labels == kind)).nonzero()[:, 0].tolist()
            its_anchors = (kinds == kind).nonzero()[:, 0].tolist()
            if not mine:
                continue
            iou = nearest_bev_iou(boxes[mine], anchors.boxes[its_anchors]).tolist()
            for column, anchor in enumerate(its_anchors):
                best = max(range(len(mine)), key=lambda row: iou[row][column])
                if iou[best][column] >= anchor_class.positive:
                    matched[sample, anchor] = mine[best]
                elif iou[best][column] >= anchor_class.negative:
                    matched[sample, anchor] = IGNORED
            for row, box in enumerate(mine):
                best_iou = max(iou[row])
                if best_iou >= anchor_class.negative:
                    for column, anchor in enumerate(its_anchors):
                        if iou[row][column] == best_iou:
                            matched[sample, anchor] = box
    return matched


def test_boxes_of_the_kitti_grid():
    anchors = Anchors((0, -39.68, -3, 69.12, 39.68, 1), (248, 216), ("Pedestrian", "Cyclist", "Car"))
    assert anchors.boxes.shape == (248 * 216 * 6, 7)
    first_car, last = anchors.boxes[4], anchors.boxes[-1]
    torch.testing.assert_close(first_car, torch.tensor([0.16, -39.52, -1.0, 3.9, 1.6, 1.56, 0.0]))
    torch.testing.assert_close(last, torch.tensor([68.96, 39.52, -1.0, 3.9, 1.6, 1.56, math.pi / 2]))
    torch.testing.assert_close(anchors.boxes[0, 2].item(), -0.6 + 1.73 / 2)
    assert not anchors.state_dict()


def test_unknown_class_names_the_nearest():
    with pytest.raises(KDBenchError, match="class 'Pedestrain' has no anchor; did you mean 'Pedestrian'"):
        Anchors(RANGE, GRID, ("Pedestrain",))
    table = {"Tram": AnchorClass((16.0, 2.5, 3.5), -1.8, 0.6, 0.45)}
    assert Anchors(RANGE, GRID, ("Tram",), table).boxes[0, 3] == 16


def test_decode_inverts_encode():
    anchors = Anchors(RANGE, GRID)
    boxes, _ = random_boxes(anchors, 50, 0)
    rows = torch.randint(len(anchors), (50,), generator=rng.generator(0, "rows"))
    codes = encode(boxes.double(), anchors.boxes[rows].double())
    torch.testing.assert_close(decode(codes, anchors.boxes[rows].double()), boxes.double(), rtol=1e-12, atol=1e-12)


def test_decoded_sizes_are_bounded():
    anchor = torch.tensor([1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 0.5])
    size = decode(torch.tensor([0, 0, 0, 100.0, -1000.0, 4.0, 0]), anchor)[3:6]
    torch.testing.assert_close(size, torch.tensor([4 * math.exp(4), 3 * math.exp(-4), 2 * math.exp(4)]))


def test_encode_known_values():
    anchor = torch.tensor([1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 0.5])
    box = torch.tensor([2.0, 4.5, 2.0, 8.0, 3.0, 1.0, 0.75])
    expected = torch.tensor([0.2, 0.5, -0.5, math.log(2), 0.0, -math.log(2), 0.25])
    torch.testing.assert_close(encode(box, anchor), expected)


def test_heading_gives_back_the_yaw_from_its_value_modulo_pi():
    yaw = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    half_turns = torch.randint(-3, 4, (4001,), generator=rng.generator(0, "turns")).double() * math.pi
    back = with_heading(yaw + half_turns, heading_bin(yaw))
    torch.testing.assert_close(back.cos(), yaw.cos(), atol=1e-9, rtol=0)
    torch.testing.assert_close(back.sin(), yaw.sin(), atol=1e-9, rtol=0)
    assert heading_bin(torch.tensor([0.0, 1.5, -1.5, 3.1, -3.1, 1.6])).tolist() == [0, 0, 0, 1, 1, 1]
    assert set(heading_bin(torch.linspace(-7, 7, 100001)).tolist()) == {0, 1}


@pytest.mark.parametrize(("seed", "grid"), [(0, GRID), (1, GRID), (2, FINE), (3, FINE)])
def test_assignment_equals_a_slow_reference(seed, grid):
    anchors = Anchors(RANGE, grid)
    boxes, labels = random_boxes(anchors, 36, seed)
    # A crowd: each of the last boxes stands almost where one of the first does.
    g = rng.generator(seed, "crowd")
    boxes[18:], labels[18:] = boxes[:18], labels[:18]
    boxes[18:, :2] += torch.rand(18, 2, generator=g) * anchors.sizes[labels[18:], :2] * 0.5
    batch = torch.arange(36) % 3
    matched = assign_per_class(anchors, boxes, labels, batch, 3)
    expected = assign_slowly(anchors, boxes, labels, batch, 3)
    assert torch.equal(matched, expected)
    assert all((expected == kind).any() for kind in (BACKGROUND, IGNORED))
    assert (expected >= 0).sum() > 20


def test_assignment_with_unusual_sizes_equals_a_slow_reference():
    anchors = Anchors(RANGE, FINE)
    boxes, labels = random_boxes(anchors, 36, 7)
    boxes[:, 3:5] *= torch.linspace(0.6, 1.5, 36)[:, None]
    batch = torch.zeros(36, dtype=torch.long)
    assert torch.equal(
        assign_per_class(anchors, boxes, labels, batch, 1), assign_slowly(anchors, boxes, labels, batch, 1)
    )


@pytest.mark.parametrize(("axis", "yaw"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("shift", [-0.157, 0.157])
def test_window_holds_the_furthest_anchor_that_counts(axis, yaw, shift):
    anchors = Anchors(RANGE, FINE, ("Car",))
    box = anchors.boxes[(30 * 48 + 24) * 2 + yaw].clone()[None]
    box[:, axis] += shift  # almost at the edge of its cell
    zero = torch.zeros(1, dtype=torch.long)
    matched = assign_per_class(anchors, box, zero, zero, 1)
    assert torch.equal(matched, assign_slowly(anchors, box, zero, zero, 1))
    furthest = (anchors.boxes[matched[0] != BACKGROUND, axis] - box[0, axis]).abs().max()
    assert furthest > 4.5 * 0.32


def test_box_below_the_positive_threshold_takes_its_best_anchors():
    anchors = Anchors(RANGE, GRID, ("Car",))
    # Half-way between two cells along y and smaller: both are equally good, neither reaches 0.6.
    box = anchors.boxes[(10 * 24 + 10) * 2].clone()[None]
    box[:, 1] += 0.32
    box[:, 4] *= 0.85
    box[:, 3] *= 0.8
    matched = assign_per_class(anchors, box, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), 1)
    iou = nearest_bev_iou(box, anchors.boxes)[0]
    assert 0.45 < iou.max() < 0.6
    taken = (matched[0] == 0).nonzero()[:, 0].tolist()
    assert taken == [i for i in ((10 * 24 + 10) * 2, (11 * 24 + 10) * 2) if iou[i] == iou.max()]


def test_boxes_of_another_class_or_sample_do_not_matter():
    anchors = Anchors(RANGE, GRID)
    box = anchors.boxes[(10 * 24 + 10) * 6 + 4][None]
    for label, sample in ((0, 0), (2, 1)):
        matched = assign_per_class(anchors, box, torch.tensor([label]), torch.tensor([sample]), 2)
        kinds = torch.arange(len(anchors)) // 2 % 3
        assert (matched[1 - sample] == BACKGROUND).all()
        assert (matched[:, kinds != label] == BACKGROUND).all()
    assert matched[1, (10 * 24 + 10) * 6 + 4] == 0


def test_no_boxes():
    anchors = Anchors(RANGE, GRID)
    none = torch.zeros(0, dtype=torch.long)
    matched = assign_per_class(anchors, torch.zeros(0, 7), none, none, 2)
    assert matched.shape == (2, len(anchors))
    assert (matched == BACKGROUND).all()
