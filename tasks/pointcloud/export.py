"""What is exported of a detector: from the points of one scan to boxes; the rest is NumPy (``script.py``)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.task import ExportPlan
from tasks.pointcloud import anchors as coding
from tasks.pointcloud.anchored import AnchoredHead
from tasks.pointcloud.anchors import Anchors
from tasks.pointcloud.centerpoint import Peaks
from tasks.pointcloud.centred import MAX_KEEP, NMS, TOP_K, CentredHead
from tasks.pointcloud.decode import decode
from tasks.pointcloud.detector import PillarOutputs, PointPillars
from tasks.pointcloud.pointnet2 import RADII, Level
from tasks.pointcloud.pointrcnn import PointOutputs, PointRCNN
from tasks.pointcloud.pointrcnn import decode as decode_points
from tasks.pointcloud.pointset import dense
from tasks.pointcloud.pointwise import TEST_OVERLAP
from tasks.pointcloud.script import pillarise
from tasks.pointcloud.second import SECOND


class Boxes(nn.Module):
    """Decodes what a detector says of one scan.

    Args:
        anchors: That it is relative to.
    """

    def __init__(self, anchors: Anchors) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, cls: Tensor, box: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the box of each anchor (A, 7) in metres and radians, and its scores (A, classes) from 0 to 1."""
        # Made anew: a file would hold them all.
        boxes = coding.decode(box[0].float(), self.anchors.all_boxes())
        yaw = coding.with_heading(boxes[:, 6:], direction[0].argmax(-1, keepdim=True))
        return torch.cat([boxes[:, :6], yaw], 1), cls[0].float().sigmoid()


class Scan(nn.Module):
    """A ``PointPillars`` on one scan, whose points are described and sorted into pillars before.

    Args:
        model: Whose weights it shares.
        decoder: Of its outputs.
    """

    def __init__(self, model: PointPillars, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.dense, self.decoder = model.encoder, model.dense_part(), decoder

    def forward(self, points: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (A, 7) and scores (A, classes).

        Args:
            points: As the encoder describes them, (P, columns + 6).
            cells: Where on the canvas each one is, y times its width plus x, (P,).
        """
        features, shift = self.encoder.inferred(points)
        height, width = self.encoder.grid
        # Cells without a point stay at minus infinity, which ReLU makes the zero of an empty canvas.
        canvas = features.new_full((height * width, features.shape[1]), -torch.inf)
        canvas = canvas.scatter_reduce(0, cells[:, None].expand_as(features), features, "amax")
        canvas = F.relu(canvas + shift).view(1, height, width, -1).permute(0, 3, 1, 2)
        boxes, scores = self.decoder(*self.dense(canvas))
        return boxes, scores


class Whole(nn.Module):
    """A detector of another class on the points of one scan as they are.

    Args:
        model: Called as ``model(points, batch, size)``.
        decoder: Of its outputs.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.model, self.decoder = model, decoder

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (A, 7) and scores (A, classes) for points (P, columns)."""
        outputs: PillarOutputs = self.model(points, torch.zeros_like(points[:, 0], dtype=torch.long), 1)
        boxes, scores = self.decoder(outputs.cls, outputs.box, outputs.direction)
        return boxes, scores


class Canvas(nn.Module):
    """A ``SECOND`` from its bird's-eye view on: no exporter knows the sparse convolutions before.

    Args:
        model: Whose weights it shares.
        decoder: Of its outputs.
    """

    def __init__(self, model: SECOND, decoder: nn.Module) -> None:
        super().__init__()
        self.dense, self.decoder = model.dense_part(), decoder

    def forward(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (A, 7) and scores (A, classes) for a canvas (1, channels, y, x)."""
        boxes, scores = self.decoder(*self.dense(canvas))
        return boxes, scores


class FirstStage(nn.Module):
    """The first stage of a ``PointRCNN`` on points whose neighbours are found before: no exporter knows that search.

    Args:
        model: Whose weights it shares.
    """

    def __init__(self, model: PointRCNN) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.register_buffer("sizes", model.sizes, persistent=False)

    sizes: Tensor

    def forward(self, points: Tensor, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the box of each point (N, 7) in metres and radians, and its scores (N, classes) from 0 to 1.

        Args:
            points: x, y, z in metres and further columns, (N, columns).
            levels: Of each layer centres (M,), the points in balls of both radii (M, K), shares of the three nearest
                (N, 3), and which these are (N, 3).
        """
        parts = [value[None] for value in levels]
        width = len(RADII[0])
        found = [
            Level(parts[at], parts[at + 1 : at + 1 + width], *parts[at + 1 + width : at + 3 + width])
            for at in range(0, len(parts), 3 + width)
        ]
        xyz = points[None, :, :3]
        cls, box = self.head(self.backbone(xyz, points[None, :, 3:], found))
        labels = cls[0].argmax(-1)
        return decode_points(box[0].float(), points[:, :3], self.sizes[labels]), cls[0].float().sigmoid()


class BothStages(nn.Module):
    """A ``PointRCNN`` with the second look at the boxes that it would look at.

    Args:
        model: Whose weights it shares.
    """

    def __init__(self, model: PointRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, batch: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Returns logits (R,) and codes (R, 7) of the second stage."""
        outputs: PointOutputs = self.model(points, batch, size)
        scores, codes = self.model.refine(outputs, self.model.propose(outputs, TEST_OVERLAP))
        return scores, codes


def of_points(model: PointRCNN, points: np.ndarray) -> ExportPlan:
    """Plans the export of a detector on raw points, its first stage.

    Args:
        model: A ``PointRCNN``.
        points: Of an example, (P, columns).
    """
    device = next(model.parameters()).device
    cloud = torch.from_numpy(points).to(device)
    values = dense(cloud, torch.zeros(len(cloud), dtype=torch.long, device=device), 1, model.points)
    given = {"points": values[0]}
    for number, level in enumerate(model.backbone.geometry(values[..., :3].contiguous())):
        parts = {"centres": level.centres, **{f"near{i}": index for i, index in enumerate(level.near)}}
        parts |= {"share": level.share, "source": level.source}
        given |= {f"{name}_{number}": value[0] for name, value in parts.items()}
    facts = {
        "points": model.points,
        "levels": "what tasks.pointcloud.pointnet2.PointNet2.geometry finds",
        "outputs": "box and class scores of every point, of the first stage; the second is not exported",
    }
    return ExportPlan(FirstStage(model).eval(), tuple(given.values()), tuple(given), ("boxes", "scores"), facts=facts)


def plan(
    model: nn.Module, head: AnchoredHead | CentredHead, points: np.ndarray, inputs: Mapping[str, Any]
) -> ExportPlan:
    """Plans the export of a detector whose outputs are over the cells of a bird's-eye view.

    Args:
        model: From the described points of a scan on for a ``PointPillars``, from the canvas on for a ``SECOND``, else
            whole.
        head: What its outputs mean.
        points: Of an example, (P, columns).
        inputs: How a record says that scans are read.
    """
    device = next(model.parameters()).device
    decoder: nn.Module
    if isinstance(head, CentredHead):
        decoder = Peaks(head.cells)
        facts: dict[str, Any] = {"top_k": TOP_K, "nms": NMS, "max_keep": MAX_KEEP}
        facts["outputs"] = "box and class scores of every cell, scores 0 where a neighbour surpasses it"
    else:
        decoder = Boxes(copy.deepcopy(head.anchors).to(device))
        chosen = inspect.signature(decode).parameters
        facts = {name: chosen[name].default for name in ("top_k", "nms", "max_keep")}
        facts["outputs"] = "box and class scores of every anchor"
    facts["score_threshold"] = head.score_threshold
    if isinstance(model, SECOND):
        facts |= {
            "grid": list(model.grid),
            "canvas": "what tasks.pointcloud.sparse.flatten makes of the last sparse grid",
        }
        example = (_canvas(model, device),)
        return ExportPlan(Canvas(model, decoder).eval(), example, ("canvas",), ("boxes", "scores"), facts=facts)
    module: nn.Module = Whole(model, decoder)
    given = {"points": points}
    if isinstance(model, PointPillars):
        facts |= {"grid": list(model.grid), "max_points": model.encoder.max_points, "legacy": model.encoder.legacy}
        module, given = Scan(model, decoder), pillarise(points, {**facts, "inputs": inputs})
    return ExportPlan(
        module.eval(),
        tuple(torch.from_numpy(value).to(device) for value in given.values()),
        tuple(given),
        ("boxes", "scores"),
        dynamic={name: {0: "points"} for name in given},
        facts=facts,
        script=("tasks.pointcloud.script",),
    )


def measured(model: nn.Module, scan: Mapping[str, Any]) -> ExportPlan:
    """Plans what is timed: of a ``PointPillars`` all after its encoder, on a canvas; else all, on one scan."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if not isinstance(model, PointPillars):
        model = BothStages(model) if isinstance(model, PointRCNN) else model
        points, batch = scan["points"].to(device), scan["batch"].to(device)
        return ExportPlan(model.eval(), (points, batch, 1), ("points", "batch", "size"))
    return ExportPlan(model.dense_part().eval(), (_canvas(model, device),), ("canvas",))


def _canvas(model: PointPillars | SECOND, device: torch.device) -> Tensor:
    canvas = torch.randn(1, model.canvas_channels, *model.grid, device=device)
    return canvas.contiguous(memory_format=torch.channels_last)
