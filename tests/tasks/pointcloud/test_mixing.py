from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.task import Batch
from tasks.pointcloud.mixing import paste_instances, swap_sectors


def scans(counts: tuple[int, ...] = (50, 0, 70, 31), boxes: tuple[int, ...] = (3, 2, 0, 4)) -> Batch:
    draw = rng.generator(0, "scans")

    def ragged(numbers: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        sample = torch.arange(len(numbers)).repeat_interleave(torch.tensor(numbers))
        return torch.rand(sum(numbers), 7, generator=draw) * torch.tensor([40.0, 60, 3, 4, 2, 2, 3]) - torch.tensor(
            [0.0, 30, 1, 0, 0, 0, 0]
        ), sample

    points, of_points = ragged(counts)
    truth, of_truth = ragged(boxes)
    return Batch(
        {"points": points[:, :4], "batch": of_points, "size": len(counts)},
        {"boxes": truth, "labels": torch.arange(len(truth)), "batch": of_truth},
        torch.arange(len(counts)),
    )


def plain(batch: Batch, order: list[int], start: list[float], width: list[float]) -> tuple[list[Any], list[Any]]:
    """The rows of each scan after the exchange, by loops over scans and rows."""
    azimuths = [math.atan2(float(y), float(x)) for x, y in batch.inputs["points"][:, :2]]
    low, high = min(azimuths), max(azimuths)

    def inside(row: torch.Tensor, scan: int) -> bool:
        at = min(max((math.atan2(float(row[1]), float(row[0])) - low) / (high - low), 0), 1)
        return (at - start[scan]) % 1 < width[scan]

    found = []
    for values, sample in (
        (batch.inputs["points"], batch.inputs["batch"]),
        (batch.targets["boxes"], batch.targets["batch"]),
    ):
        for scan, partner in enumerate(order):
            rows = [r for r, s in zip(values, sample.tolist(), strict=True) if s == scan and not inside(r, scan)]
            rows += [r for r, s in zip(values, sample.tolist(), strict=True) if s == partner and inside(r, scan)]
            found.append(rows)
    return found[: len(order)], found[len(order) :]


@pytest.mark.parametrize("seed", range(5))
def test_an_exchange_is_that_of_a_plain_loop(seed):
    batch, draw = scans(), rng.generator(seed, "sectors")
    order, start, width = torch.randperm(4, generator=draw), torch.rand(4, generator=draw), torch.full((4,), 0.4)
    found = swap_sectors(batch, order, start, width)
    points, boxes = plain(batch, order.tolist(), start.tolist(), width.tolist())
    for scan in range(4):
        for values, of, expected in (
            (found.inputs["points"], found.inputs["batch"], points[scan]),
            (found.targets["boxes"], found.targets["batch"], boxes[scan]),
        ):
            mine = values[of == scan]
            assert len(mine) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
    assert found.inputs["batch"].tolist() == sorted(found.inputs["batch"].tolist())
    labels = batch.targets["boxes"][found.targets["labels"]]  # a label is the place of its box
    assert torch.equal(labels, found.targets["boxes"])
    assert not found.memo


def test_no_point_or_box_is_lost_where_all_scans_exchange_one_sector():
    batch = scans()
    sector = torch.full((4,), 0.3), torch.full((4,), 0.5)
    found = swap_sectors(batch, torch.tensor([1, 2, 3, 0]), *sector)
    for kind, name in (("inputs", "points"), ("targets", "boxes")):
        before, after = getattr(batch, kind)[name], getattr(found, kind)[name]
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))


def test_the_whole_circle_is_the_partner_and_nothing_is_the_scan_itself():
    batch, order = scans(), torch.tensor([2, 3, 0, 1])
    whole = swap_sectors(batch, order, torch.full((4,), 0.2), torch.ones(4))
    for scan, partner in enumerate(order.tolist()):
        mine = whole.inputs["points"][whole.inputs["batch"] == scan]
        assert torch.equal(mine, batch.inputs["points"][batch.inputs["batch"] == partner])
    none = swap_sectors(batch, order, torch.full((4,), 0.2), torch.zeros(4))
    assert torch.equal(none.inputs["points"], batch.inputs["points"])
    assert torch.equal(none.targets["boxes"], batch.targets["boxes"])


def test_a_scan_without_points_or_labels_and_a_batch_of_one():
    for batch in (scans((0, 0), (0, 0)), scans((9,), (2,))):
        n = len(batch)
        found = swap_sectors(batch, torch.arange(n), torch.zeros(n), torch.full((n,), 0.5))
        assert len(found.inputs["points"]) == len(batch.inputs["points"])


def test_labels_that_do_not_count_make_mixtures_that_do_not():
    batch = scans()
    batch.supervised = torch.tensor([True, False, True, True])
    found = swap_sectors(batch, torch.tensor([1, 2, 3, 0]), torch.zeros(4), torch.full((4,), 0.5))
    assert found.supervised is not None
    assert found.supervised.tolist() == [False, False, True, True]


RANGE = (0.0, -40.0, -3.0, 70.0, 40.0, 1.0)


def objects(counts: tuple[int, ...] = (3, 2, 0, 4)) -> Batch:
    """Scans with boxes that hold four points each, and the first box of all none, within other points."""
    draw = rng.generator(1, "objects")
    own = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n = len(own)
    rand = torch.rand(n, 4, generator=draw, dtype=torch.float64)
    away, at = 8 + 50 * rand[:, 0], 1.4 * (rand[:, 1] - 0.5)
    boxes = torch.stack(
        [away * at.cos(), away * at.sin(), -rand[:, 2], *torch.tensor([[4.0], [1.6], [1.5]]).expand(3, n)], 1
    )
    boxes = torch.cat([boxes, 6 * rand[:, 3:] - 3], 1)
    local = (torch.rand(n, 4, 3, generator=draw, dtype=torch.float64) - 0.5) * boxes[:, None, 3:6]
    cos, sin = boxes[:, 6].cos()[:, None], boxes[:, 6].sin()[:, None]
    x, y, z = local.unbind(2)
    inside = torch.stack([cos * x - sin * y, sin * x + cos * y, z], 2) + boxes[:, None, :3]
    if n:
        inside[0] += 1000.0
    ends = torch.tensor([[20.0, -20, 0], [20.0, 20, 0]], dtype=torch.float64).repeat(len(counts), 1)
    points = torch.cat([inside.flatten(0, 1), ends])
    scan = torch.cat([own.repeat_interleave(4), torch.arange(len(counts)).repeat_interleave(2)])
    ranked = scan.argsort(stable=True)
    points = torch.cat([points, torch.arange(len(points), dtype=torch.float64)[:, None]], 1)
    return Batch(
        {"points": points[ranked], "batch": scan[ranked], "size": len(counts)},
        {"boxes": boxes, "labels": torch.arange(n), "batch": own},
        torch.arange(len(counts)),
    )


def pasted_plainly(batch: Batch, order: list[int], turns: torch.Tensor, pasted: list[bool]) -> list[Any]:
    """Boxes and points that each scan gains, by loops."""
    points, scan_of = batch.inputs["points"].tolist(), batch.inputs["batch"].tolist()
    boxes, own = batch.targets["boxes"].tolist(), batch.targets["batch"].tolist()
    azimuths = [math.atan2(p[1], p[0]) for p in points]
    low, span = min(azimuths), max(azimuths) - min(azimuths)

    def turned(x: float, y: float, by: float) -> tuple[float, float]:
        return math.cos(by) * x - math.sin(by) * y, math.sin(by) * x + math.cos(by) * y

    def free(box: list[float], others: list[list[float]]) -> bool:
        reach = [math.hypot(b[3], b[4]) / 2 for b in (box, *others)]
        return all(math.dist(box[:2], b[:2]) >= reach[0] + r for b, r in zip(others, reach[1:], strict=True))

    found = []
    for scan, partner in enumerate(order):
        tried: list[list[float]] = []
        gained: tuple[list[Any], list[Any]] = ([], [])
        for box, of in zip(boxes, own, strict=True):
            for turn in turns[scan].tolist() if of == partner and pasted[scan] else []:
                at = math.atan2(box[1], box[0]) - low
                by = (at + turn * span) % span - at
                inside = []
                for p, s in zip(points, scan_of, strict=True):
                    x, y = turned(p[0] - box[0], p[1] - box[1], -box[6])
                    near = abs(x) <= box[3] / 2 and abs(y) <= box[4] / 2 and abs(p[2] - box[2]) <= box[5] / 2
                    if s == partner and near:
                        inside.append([*turned(p[0], p[1], by), *p[2:]])
                moved = [*turned(box[0], box[1], by), *box[2:6], (box[6] + by + math.pi) % (2 * math.pi) - math.pi]
                within = all(RANGE[i] <= moved[i] <= RANGE[i + 3] for i in range(3))
                mine = [b for b, s in zip(boxes, own, strict=True) if s == scan]
                if not inside or not within or not free(moved, mine):
                    continue
                if free(moved, tried):
                    gained[0].append(moved)
                    gained[1].extend(inside)
                tried.append(moved)
        found.append(gained)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_pasting_is_that_of_a_plain_loop(seed):
    batch, draw = objects(), rng.generator(seed, "paste")
    order, turns = torch.randperm(4, generator=draw), torch.rand(4, 3, generator=draw).double()
    turns[:, 0] = 0
    pasted = torch.tensor([True, True, True, seed > 1])
    expected = pasted_plainly(batch, order.tolist(), turns, pasted.tolist())
    assert sum(len(boxes) for boxes, _ in expected) > 3
    found = paste_instances(RANGE)(batch, batch, order, turns, pasted)
    for scan, gained in enumerate(expected):
        for part, name, more in zip((found.inputs, found.targets), ("points", "boxes"), gained[::-1], strict=True):
            before = getattr(batch, "inputs" if name == "points" else "targets")
            was = before[name][before["batch"] == scan]
            mine = part[name][part["batch"] == scan]
            assert torch.equal(mine[: len(was)], was)
            assert len(mine) == len(was) + len(more)
            if more:
                torch.testing.assert_close(mine[len(was) :], mine.new_tensor(more))
    assert found.inputs["batch"].tolist() == sorted(found.inputs["batch"].tolist())
    copied = batch.targets["boxes"][found.targets["labels"]]  # a label is the place of its box
    assert torch.equal(copied[:, 2:6], found.targets["boxes"][:, 2:6])


def test_what_was_not_turned_stays_where_it_was_and_nothing_is_pasted_into_others():
    batch, order = objects(), torch.tensor([1, 0, 3, 2])
    still = torch.zeros(4, 1)
    found = paste_instances(RANGE)(batch, batch, order, still, torch.tensor([False, False, True, False]))
    for scan in (0, 1, 3):
        assert int((found.targets["batch"] == scan).sum()) == (3, 2, 0, 4)[scan]
    gained = found.targets["boxes"][found.targets["batch"] == 2]
    assert len(gained) > 0
    assert all(any(torch.allclose(box, other) for other in batch.targets["boxes"]) for box in gained)


def test_pasting_among_scans_without_points_or_labels_and_in_a_batch_of_one():
    for batch in (scans((0, 0), (0, 0)), scans((9,), (0,)), objects((2,)), scans((0, 0), (2, 1))):
        n = len(batch)
        found = paste_instances(RANGE)(
            batch, batch, torch.arange(n), torch.zeros(n, 2), torch.ones(n, dtype=torch.bool)
        )
        assert len(found.targets["boxes"]) == len(batch.targets["boxes"])  # its own objects are there already
        assert len(found.inputs["points"]) == len(batch.inputs["points"])


def test_labels_that_do_not_count_make_pasted_scans_that_do_not():
    batch = objects()
    batch.supervised = torch.tensor([True, False, True, True])
    pasted = torch.tensor([True, True, False, True])
    found = paste_instances(RANGE)(batch, batch, torch.tensor([1, 2, 3, 0]), torch.zeros(4, 1), pasted)
    assert found.supervised is not None
    assert found.supervised.tolist() == [False, False, True, True]
