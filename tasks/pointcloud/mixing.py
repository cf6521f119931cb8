"""Scans of a batch mixed: sectors exchanged, objects turned about the sensor and pasted.

Boxes are ``(N, 7)`` x, y, z of the centre, l, w, h and yaw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.functional.mix import known_mixture
from kdbench.task import Batch
from tasks.pointcloud.boxes import limit_period, turned

Ragged = dict[str, Any]


def swap_sectors(batch: Batch, order: Tensor, start: Tensor, width: Tensor) -> Batch:
    """Gives each scan the sector of its partner in place of its own, points and the boxes that are centred there.

    Args:
        batch: Of B scans.
        order: Partner of each, a permutation ``(B,)``.
        start: Where each sector begins, as a share of the azimuths that the points of the batch have ``(B,)``.
        width: How wide it is, likewise ``(B,)``; what exceeds their end goes on at their beginning.
    """
    points, targets = batch.inputs, batch.targets
    low, span = _covered(points["points"])
    to = order.argsort()  # the scan that each is the partner of

    def taken(values: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places of what is kept and brought, scan after scan, and the scan of each."""
        at = ((_azimuth(values) - low) / span).clamp(0, 1)

        def inside(scan: Tensor) -> Tensor:
            return (at - start[scan]).remainder(1) < width[scan]

        kept, brought = (~inside(sample)).nonzero()[:, 0], inside(to[sample]).nonzero()[:, 0]
        places, scan = torch.cat([kept, brought]), torch.cat([sample[kept], to[sample[brought]]])
        ranked = scan.argsort(stable=True)
        return places[ranked], scan[ranked]

    places, scan = taken(points["points"], points["batch"])
    inputs: Ragged = {**points, "points": points["points"][places], "batch": scan}
    places, scan = taken(targets["boxes"], targets["batch"])
    boxes: Ragged = {**targets, "boxes": targets["boxes"][places], "labels": targets["labels"][places], "batch": scan}
    # A sector may hold nothing of a scan, so a mixture counts where both do.
    half = torch.full_like(start, 0.5)
    supervised, distilled = (
        None if mask is None else known_mixture(mask, order, half) for mask in (batch.supervised, batch.distilled)
    )
    return batch.with_inputs(inputs, targets=boxes, supervised=supervised, distilled=distilled)


Paste = Callable[[Batch, Batch, Tensor, Tensor, Tensor], Batch]


def paste_instances(point_range: Sequence[float]) -> Paste:
    """Returns what pastes the objects of partners, turned about the sensor, into scans.

    Args:
        point_range: x, y, z minimum, then x, y, z maximum, metres: nothing is pasted outside.
    """

    @torch.no_grad()
    def paste(batch: Batch, source: Batch, order: Tensor, turns: Tensor, pasted: Tensor) -> Batch:
        """Pastes the points in each box of the partner, and the box, R times.

        An object without points is not pasted, nor one whose circle about its box from above meets that of a box of the
        scan or of an object before it.

        Args:
            batch: Of B scans, into which is pasted.
            source: Those from which.
            order: Partner of each, a permutation ``(B,)``.
            turns: Of the copies, as shares of the azimuths that the points of ``source`` have ``(B, R)``; what exceeds
                their end goes on at their beginning.
            pasted: The scans into which is pasted ``(B,)`` bool.
        """
        boxes, truth = source.targets["boxes"], batch.targets
        to = order.argsort()[source.targets["batch"]]  # the scan into which each box goes
        box = pasted[to].nonzero()[:, 0].repeat_interleave(turns.shape[1])
        scan = to[box]
        low, span = _covered(source.inputs["points"])
        at = (_azimuth(boxes[box]) - low).clamp(min=0).minimum(span * (1 - 1e-6))
        share = turns[scan, torch.arange(len(box), device=box.device) % turns.shape[1]].to(at)
        turn = (at + share * span).remainder(span) - at
        moved = torch.cat(
            [
                turned(boxes[box, :2], turn),
                boxes[box, 2:6],
                limit_period(boxes[box, 6:] + turn[:, None], period=2 * torch.pi),
            ],
            1,
        )

        point_of, box_of = _inside(source, boxes)
        count = torch.bincount(box_of, minlength=len(boxes))
        ends = moved.new_tensor(point_range).view(2, 3)
        keep = ((moved[:, :3] >= ends[0]) & (moved[:, :3] <= ends[1])).all(1) & (count[box] > 0)
        keep &= ~_meets(moved, scan, truth["boxes"], truth["batch"]).any(1)
        box, scan, turn, moved = box[keep], scan[keep], turn[keep], moved[keep]
        keep = ~_meets(moved, scan, moved, scan).tril(-1).any(1)
        box, scan, turn, moved = box[keep], scan[keep], turn[keep], moved[keep]

        # The points of box after box lie end to end in ``point_of``.
        length, start = count[box], (count.cumsum(0) - count)[box]
        each = torch.arange(len(box), device=box.device).repeat_interleave(length)
        place = torch.arange(len(each), device=box.device) - (length.cumsum(0) - length)[each]
        found = source.inputs["points"][point_of[start[each] + place]]
        found = torch.cat([turned(found[:, :2], turn[each]), found[:, 2:]], 1)

        inputs = _joined(batch.inputs, scan[each], points=found)
        targets = _joined(truth, scan, boxes=moved, labels=source.targets["labels"][box])
        own = torch.where(pasted, 0.5, 1.0)
        supervised, distilled = (
            None if mask is None else known_mixture(mask, order, own) for mask in (batch.supervised, batch.distilled)
        )
        return batch.with_inputs(inputs, targets=targets, supervised=supervised, distilled=distilled)

    return paste


def _joined(before: Ragged, scan: Tensor, **further: Tensor) -> Ragged:
    """Appends rows of scans ``(N,)`` to ragged tensors, scan after scan."""
    joined = torch.cat([before["batch"], scan])
    ranked = joined.argsort(stable=True)
    values = {name: torch.cat([before[name], rows.to(before[name])])[ranked] for name, rows in further.items()}
    return {**before, **values, "batch": joined[ranked]}


def _inside(batch: Batch, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns point and box of each pair of one scan of which the one is in the other, by box ``(K,)``."""
    points, scan = batch.inputs["points"], batch.inputs["batch"]
    near = batch.targets["batch"][:, None] == scan
    near &= (points[:, 0] - boxes[:, :1]).square() + (points[:, 1] - boxes[:, 1:2]).square() <= _radius(boxes)[
        :, None
    ] ** 2
    box, point = near.nonzero().T
    apart = points[point, :3] - boxes[box, :3]
    across = turned(apart[:, :2], -boxes[box, 6])
    found = (torch.cat([across, apart[:, 2:]], 1).abs() <= boxes[box, 3:6] / 2).all(1)
    return point[found], box[found]


def _meets(boxes: Tensor, scan: Tensor, others: Tensor, of: Tensor) -> Tensor:
    """Says which circles about boxes from above meet which others of their scan ``(N, M)``."""
    apart = torch.cdist(boxes[:, :2], others[:, :2], compute_mode="donot_use_mm_for_euclid_dist")
    return (scan[:, None] == of) & (apart < _radius(boxes)[:, None] + _radius(others))


def _radius(boxes: Tensor) -> Tensor:
    return boxes[:, 3:5].norm(dim=1) / 2


def _covered(points: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first azimuth that points have, and how far they go from there."""
    azimuth = _azimuth(points)
    if not len(azimuth):
        return azimuth.new_zeros(()), azimuth.new_ones(())
    return azimuth.min(), (azimuth.max() - azimuth.min()).clamp(min=1e-6)


def _azimuth(values: Tensor) -> Tensor:
    return torch.atan2(values[:, 1], values[:, 0])
