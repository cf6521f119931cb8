"""ResNets for small images (He et al.: Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2).

As in the distillation literature since CRD (Tian et al., ICLR 2020), shortcuts that change the shape are projections,
and ``x4`` networks have four times the channels. ``cifar_resnet50`` is the ImageNet network with a 3 x 3 stem.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tasks.classification.models.base import ConvNet, conv, init_kaiming, register


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        return self.act3(self.bn3(self.conv3(y)) + self.downsample(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity, or a projection where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(ConvNet):
    """A stem at full resolution and stages ``layer1``, ``layer2``, … of doubling width and halving resolution.

    Args:
        layers: Blocks of each stage.
        width: Channels of the first stage, before the expansion of bottlenecks.
        stem: Channels of the stem; ``width`` where None.
        bottleneck: Makes bottleneck blocks.
        num_classes: Classes.
        in_chans: Channels of the images.
    """

    def __init__(
        self,
        layers: Sequence[int],
        width: int = 16,
        stem: int | None = None,
        bottleneck: bool = False,
        num_classes: int = 100,
        in_chans: int = 3,
    ) -> None:
        block = Bottleneck if bottleneck else BasicBlock
        channels = stem or width
        features: dict[str, nn.Module] = {
            "conv1": conv(in_chans, channels, 3),
            "bn1": nn.BatchNorm2d(channels),
            "act1": nn.ReLU(inplace=True),
        }
        for stage, blocks in enumerate(layers):
            made = []
            for index in range(blocks):
                made.append(block(channels, width << stage, 2 if stage and not index else 1))
                channels = (width << stage) * block.expansion
            features[f"layer{stage + 1}"] = nn.Sequential(*made)
        super().__init__(features, channels, num_classes)
        init_kaiming(self)


for _blocks in (1, 2, 3, 5, 7, 9, 18):
    register(f"resnet{6 * _blocks + 2}", ResNet, layers=(_blocks,) * 3)
register("resnet8x4", ResNet, layers=(1, 1, 1), width=64, stem=32)
register("resnet32x4", ResNet, layers=(5, 5, 5), width=64, stem=32)
register("resnet50", ResNet, layers=(3, 4, 6, 3), width=64, bottleneck=True)
