"""Heads: what joins the levels of a backbone to the map that the classifier reads.

Maps that are pooled to a cell have no batch normalisation, which a batch of one image could not train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Rates of dilated convolutions at an output stride of 16 (Chen et al., arXiv 1706.05587); twice as large at 8.
RATES = (6, 12, 18)
#: Cells along a side that the map is pooled to (Zhao et al., CVPR 2017).
BINS = (1, 2, 3, 6)


class Levels(NamedTuple):
    """The maps that a backbone gives, shallow to deep: their channels and their strides."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]


class ConvUnit(nn.Sequential):
    """Convolution, batch normalisation (unless ``norm`` is false), ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, norm: bool = True) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=not norm),
            nn.BatchNorm2d(outputs) if norm else nn.Identity(),
            nn.ReLU(),
        )


def to_size(values: Tensor, like: Tensor) -> Tensor:
    """Brings a map to the size of another, bilinearly."""
    return F.interpolate(values, like.shape[2:], mode="bilinear", align_corners=False)


class FPN(nn.Module):
    """A 1x1 convolution a level, summed from the deepest up, then 3x3 (Kirillov et al., CVPR 2019, simplified)."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in levels.widths)
        self.fuse = ConvUnit(width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Joins the levels at the size of the first."""
        maps = [lateral(values) for lateral, values in zip(self.laterals, maps, strict=True)]
        joined = maps[-1]
        for values in reversed(maps[:-1]):
            joined = values + to_size(joined, values)
        return self.fuse(joined)


class FCN(nn.Module):
    """A 3x3 convolution over the deepest level (Long, Shelhamer, Darrell, CVPR 2015)."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.fuse = ConvUnit(levels.widths[-1], width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Reads the last level."""
        return self.fuse(maps[-1])


class DeepLabV3(nn.Module):
    """Dilated convolutions of several rates, and the mean, of the deepest level (Chen et al., 2017)."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        inputs, rate = levels.widths[-1], 16 / levels.strides[-1]
        rates = [max(1, round(rate * own)) for own in RATES]
        self.branches = nn.ModuleList(
            [ConvUnit(inputs, width), *(ConvUnit(inputs, width, 3, dilation) for dilation in rates)]
        )
        self.mean = ConvUnit(inputs, width, norm=False)
        self.fuse = nn.Sequential(ConvUnit(width * (len(rates) + 2), width), ConvUnit(width, width, 3))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Reads the last level."""
        deepest = maps[-1]
        found = [branch(deepest) for branch in self.branches]
        mean: Tensor = self.mean(deepest.mean((2, 3), keepdim=True))
        return self.fuse(torch.cat([*found, mean.expand(-1, -1, *deepest.shape[2:])], 1))


class PSPNet(nn.Module):
    """The deepest level beside its means over a grid of bins, of four sizes (Zhao et al., CVPR 2017)."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        inputs = levels.widths[-1]
        part = max(1, width // len(BINS))
        self.branches = nn.ModuleList(ConvUnit(inputs, part, norm=bins > 1) for bins in BINS)
        self.fuse = ConvUnit(inputs + part * len(BINS), width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Reads the last level."""
        deepest = maps[-1]
        pooled = [
            to_size(branch(F.adaptive_avg_pool2d(deepest, bins)), deepest)
            for branch, bins in zip(self.branches, BINS, strict=True)
        ]
        return self.fuse(torch.cat([deepest, *pooled], 1))


class SegFormer(nn.Module):
    """One linear layer a level, fused by one more at the size of the first (Xie et al., NeurIPS 2021)."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in levels.widths)
        self.fuse = ConvUnit(width * len(levels.widths), width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Joins the levels at the size of the first."""
        found = [linear(values) for linear, values in zip(self.linears, maps, strict=True)]
        return self.fuse(torch.cat([found[0], *(to_size(values, found[0]) for values in found[1:])], 1))


class Attended(nn.Module):
    """A level whose channels are weighed by what their means say."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.unit = ConvUnit(inputs, width, 3)
        self.weigh = nn.Conv2d(width, width, 1)

    def forward(self, values: Tensor) -> Tensor:
        """Brings the level to the width of the head."""
        values = self.unit(values)
        return values * self.weigh(values.mean((2, 3), keepdim=True)).sigmoid()


class STDC(nn.Module):
    """The head of STDC-Seg: two deep levels with attention, fused with the one of stride 8 (Fan et al., CVPR 2021)."""

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        if len(levels.widths) < 3:
            raise ValueError(f"the head stdc reads three levels, this backbone has {len(levels.widths)}")
        fine, middle, deep = levels.widths[-3:]
        self.mean = ConvUnit(deep, width, norm=False)
        self.deep, self.middle = Attended(deep, width), Attended(middle, width)
        self.after = nn.ModuleList(ConvUnit(width, width, 3) for _ in range(2))
        self.fuse = ConvUnit(fine + width, width)
        self.weigh = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.Sigmoid())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Joins the last three levels at the size of the first of them."""
        fine, middle, deep = maps[-3:]
        context = self.deep(deep) + self.mean(deep.mean((2, 3), keepdim=True))
        context = self.after[0](to_size(context, middle))
        context = self.after[1](to_size(self.middle(middle) + context, fine))
        fused = self.fuse(torch.cat([fine, context], 1))
        return fused + fused * self.weigh(fused.mean((2, 3), keepdim=True))


#: By name, what makes a head from levels and a width.
HEADS: dict[str, Callable[[Levels, int], nn.Module]] = {
    "fpn": FPN,
    "fcn": FCN,
    "deeplabv3": DeepLabV3,
    "pspnet": PSPNet,
    "segformer": SegFormer,
    "stdc": STDC,
}
#: Heads that pool to a number of cells: exporters fix the size of the images for them.
ONE_SIZE = ("pspnet",)
