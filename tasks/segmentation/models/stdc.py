"""The backbone of STDC-Seg, as timm's would be: ``features_only`` with the levels of its strides.

Paper: Fan, Lai, Huang, Wei, Chai, Luo, Wei, "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021: a
short-term dense concatenate module halves the width of each of its convolutions, and its output is all of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Convolutions of a module, and modules of each stage from stride 8 on: STDC1 of the paper.
BLOCKS, DEPTHS = 4, (2, 2, 2)


class _Unit(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class Concatenate(nn.Module):
    """The module: convolutions of 1/2, 1/4, 1/8 and 1/8 of the width, the second with the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        widths = [outputs // 2 ** min(i + 1, BLOCKS - 1) for i in range(BLOCKS)]
        self.stride = stride
        self.units = nn.ModuleList(
            _Unit(inputs if i == 0 else widths[i - 1], width, 1 if i == 0 else 3, stride if i == 1 else 1)
            for i, width in enumerate(widths)
        )

    def forward(self, values: Tensor) -> Tensor:
        """Returns ``(B, outputs, H / stride, W / stride)``."""
        found = []
        for unit in self.units:
            values = unit(values)
            found.append(values)
        if self.stride > 1:
            found[0] = F.avg_pool2d(found[0], 3, self.stride, 1)
        return torch.cat(found, 1)


class _Info(NamedTuple):
    widths: Sequence[int]
    strides: Sequence[int]

    def channels(self) -> list[int]:
        return list(self.widths)

    def reduction(self) -> list[int]:
        return list(self.strides)


class STDCBackbone(nn.Module):
    """Two convolutions of stride 2, then three stages of modules at strides 8, 16 and 32.

    Args:
        in_chans: Channels of the images.
        width: Of the first convolution over 2; 64 is the paper's STDC1.
    """

    def __init__(self, in_chans: int = 3, width: int = 64) -> None:
        super().__init__()
        widths = [width // 2, width, 4 * width, 8 * width, 16 * width]
        self.stem = nn.ModuleList([_Unit(in_chans, widths[0], stride=2), _Unit(widths[0], widths[1], stride=2)])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(Concatenate(widths[i + 1] if j == 0 else own, own, 2 if j == 0 else 1) for j in range(depth))
            )
            for i, (own, depth) in enumerate(zip(widths[2:], DEPTHS, strict=True))
        )
        self.feature_info = _Info(widths, (2, 4, 8, 16, 32))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the maps at strides 2 to 32."""
        found = []
        for stage in (*self.stem, *self.stages):
            images = stage(images)
            found.append(images)
        return found
