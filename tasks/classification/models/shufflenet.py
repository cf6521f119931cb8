"""ShuffleNets for small images: a 1 x 1 stem at full resolution instead of a strided one.

V1: Zhang et al.: ShuffleNet, CVPR 2018 (3 groups). V2: Ma et al.: ShuffleNet V2, ECCV 2018 (1x). As in the distillation
literature since CRD (Tian et al., ICLR 2020), a ReLU follows V1's depthwise convolution too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.classification.models.base import ConvNet, conv, register

STEM = 24


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of the groups."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class BlockV1(nn.Module):
    """Grouped 1 x 1, depthwise 3 x 3 and grouped 1 x 1 convolution; with a stride, the pooled input is concatenated."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        made = outputs - inputs if stride > 1 else outputs
        width = made // 4
        self.groups = 1 if inputs == STEM else groups
        self.conv1 = conv(inputs, width, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(width, made, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(made)
        self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else None
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        y = shuffle(self.act1(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(y)))))
        return self.act3(y + x if self.pool is None else torch.cat([y, self.pool(x)], 1))


class BlockV2(nn.Module):
    """Half of the channels pass, the other half goes through 1 x 1, depthwise and 1 x 1 convolution; then a shuffle.

    With a stride both halves see all of the input, one through a depthwise and a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        own = inputs if stride > 1 else half
        self.side = None
        if stride > 1:
            self.side = nn.Sequential(
                conv(inputs, inputs, 3, stride, groups=inputs),
                nn.BatchNorm2d(inputs),
                conv(inputs, half, 1),
                nn.BatchNorm2d(half),
            )
        self.conv1 = conv(own, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(half, half, 3, stride, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        kept, y = x.chunk(2, 1) if self.side is None else (self.side(x), x)
        y = self.act1(self.bn1(self.conv1(y)))
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        # What passes is positive already, so one activation serves both halves.
        return shuffle(self.act3(torch.cat([kept, y], 1)), 2)


class ShuffleNet(ConvNet):
    """Stages ``layer1`` to ``layer3``, each halving the resolution first.

    Args:
        block: ``(inputs, outputs, stride)`` to a block.
        widths: Channels of the stages.
        last: Channels of a last 1 x 1 convolution, or None for none.
        num_classes: Classes.
        in_chans: Channels of the images.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        widths: tuple[int, int, int],
        last: int | None = None,
        num_classes: int = 100,
        in_chans: int = 3,
    ) -> None:
        channels = STEM
        features: dict[str, nn.Module] = {
            "conv1": conv(in_chans, channels, 1),
            "bn1": nn.BatchNorm2d(channels),
            "act1": nn.ReLU(inplace=True),
        }
        for stage, (width, blocks) in enumerate(zip(widths, (4, 8, 4), strict=True)):
            layer = nn.Sequential()
            for index in range(blocks):
                layer.append(block(channels, width, 1 if index else 2))
                channels = width
            features[f"layer{stage + 1}"] = layer
        if last is not None:
            features |= {"conv2": conv(channels, last, 1), "bn2": nn.BatchNorm2d(last), "act2": nn.ReLU()}
            channels = last
        super().__init__(features, channels, num_classes)


register("shufflenetv1", ShuffleNet, block=BlockV1, widths=(240, 480, 960))
register("shufflenetv2", ShuffleNet, block=BlockV2, widths=(116, 232, 464), last=1024)
