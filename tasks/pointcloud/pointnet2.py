"""PointNet++ with several radii a layer (Qi et al., NeurIPS 2017), as the backbone of a detector on raw points.

What is near what follows from the coordinates alone (:meth:`PointNet2.geometry`) and has no gradient; the rest is maps
of rows, gathers and maxima.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.pointcloud.pointset import ball_query, farthest_points, nearest, take
from tasks.pointcloud.sparse import RowNorm

#: A layer keeps a quarter of the points that it reads.
THINNING = 4
RADII = ((0.1, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0))  # m
SAMPLES = (16, 32)
SETS = (
    ((16, 16, 32), (32, 32, 64)),
    ((64, 64, 128), (64, 96, 128)),
    ((128, 196, 256), (128, 196, 256)),
    ((256, 256, 512), (256, 384, 512)),
)
PROPAGATED = ((512, 512), (512, 512), (256, 256), (128, 128))  # the deepest first
_TINY = 1e-8


class Level(NamedTuple):
    """Where the points of a layer are, and what it reads.

    Attributes:
        centres: Its points among those of the layer before, (B, M).
        near: By radius the points of the layer before about each of them, (B, M, K).
        share: Of its three points nearest to each point of the layer before, (B, N, 3), in sum 1.
        source: These points, (B, N, 3).
    """

    centres: Tensor
    near: list[Tensor]
    share: Tensor
    source: Tensor


class RowMLP(nn.Sequential):
    """Linear layers, each with BatchNorm and ReLU, over rows (…, C)."""

    def __init__(self, widths: Sequence[int], eps: float = 1e-5, bias: bool = False) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(inputs, outputs, bias=bias), RowNorm(outputs, eps=eps), nn.ReLU(inplace=True)]
        super().__init__(*layers)

    def forward(self, values: Tensor) -> Tensor:
        rows = super().forward(values.flatten(0, -2))
        return rows.view(*values.shape[:-1], rows.shape[-1])


class SetAbstraction(nn.Module):
    """The maximum over balls about chosen points, of maps of what is in them.

    Args:
        inputs: Channels of a point, coordinates aside.
        widths: By radius the channels of the map's layers.
        eps: Of BatchNorm.
    """

    def __init__(self, inputs: int, widths: Sequence[Sequence[int]], eps: float = 1e-5) -> None:
        super().__init__()
        self.maps = nn.ModuleList(RowMLP((inputs + 3, *own), eps) for own in widths)

    def forward(self, xyz: Tensor, features: Tensor, centres: Tensor, near: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns coordinates (B, M, 3) and features (B, M, D) of the chosen points.

        Args:
            xyz: Coordinates, (B, N, 3).
            features: (B, N, C).
            centres: The chosen points, (B, M).
            near: By radius the points about each of them, (B, M, K).
        """
        places = take(xyz, centres)
        parts = []
        for index, layers in zip(near, self.maps, strict=True):
            offset = take(xyz, index) - places[:, :, None]
            parts.append(layers(torch.cat([offset.to(features.dtype), take(features, index)], -1)).amax(2))
        return places, torch.cat(parts, -1)


class FeaturePropagation(nn.Module):
    """Features of few points brought to many, by those of the three nearest, and mapped together with their own.

    Args:
        inputs: Channels of both.
        widths: Channels of the map's layers.
    """

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.map = RowMLP((inputs, *widths))

    def forward(self, own: Tensor, few: Tensor, share: Tensor, source: Tensor) -> Tensor:
        """Returns features (B, N, D).

        Args:
            own: (B, N, C).
            few: (B, M, E).
            share: Of the three nearest, (B, N, 3).
            source: Which these are, (B, N, 3).
        """
        brought = (take(few, source) * share.to(few.dtype)[..., None]).sum(2)
        mapped: Tensor = self.map(torch.cat([brought, own], -1))
        return mapped


class PointNet2(nn.Module):
    """Four layers of set abstraction and four of feature propagation.

    Args:
        inputs: Channels of a point, coordinates aside.
        sets: Widths of the abstraction, by layer and radius.
        propagated: Widths of the propagation, the deepest layer first.

    Attributes:
        channels: Of a point in the end.
    """

    def __init__(
        self, inputs: int, sets: Sequence[Sequence[Sequence[int]]], propagated: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        widths = [inputs, *(sum(own[-1] for own in layer) for layer in sets)]
        self.encoder = nn.ModuleList(
            SetAbstraction(before, layer, 1e-3) for before, layer in zip(widths[:-1], sets, strict=True)
        )
        decoder, deep = [], widths[-1]
        for own, layer in zip(widths[-2::-1], propagated, strict=True):
            decoder.append(FeaturePropagation(deep + own, layer))
            deep = layer[-1]
        self.decoder = nn.ModuleList(decoder)
        self.channels = deep

    @torch.no_grad()
    def geometry(self, xyz: Tensor) -> list[Level]:
        """Says of coordinates (B, N, 3) which points are chosen and near, by layer."""
        levels = []
        for radii in RADII:
            centres = farthest_points(xyz, max(1, xyz.shape[1] // THINNING))
            places = take(xyz, centres)
            distance, source = nearest(xyz, places)
            share = 1 / (distance + _TINY)
            levels.append(
                Level(centres, ball_query(xyz, places, radii, SAMPLES), share / share.sum(-1, keepdim=True), source)
            )
            xyz = places
        return levels

    def forward(self, xyz: Tensor, features: Tensor, levels: Sequence[Level]) -> Tensor:
        """Returns features (B, N, channels) of points (B, N, 3) that have (B, N, C)."""
        kept = [features]
        for layer, level in zip(self.encoder, levels, strict=True):
            xyz, features = layer(xyz, features, level.centres, level.near)
            kept.append(features)
        features = kept.pop()
        for step, level in zip(self.decoder, reversed(levels), strict=True):
            features = step(kept.pop(), features, level.share, level.source)
        return features
