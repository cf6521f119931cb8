"""MobileNetV2 (Sandler et al.: Inverted Residuals and Linear Bottlenecks, CVPR 2018), for small images.

As in the distillation literature since RCO (Jin et al., ICCV 2019): half the width but for the 1280 last channels,
stride 16 in all, and a 1 x 1 convolution before the depthwise one in the first block too.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tasks.classification.models.base import ConvNet, conv, init_kaiming, init_small_head, register

#: Expansion, channels, blocks and stride of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv_bn_act(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, its norm and a ReLU."""
    made = conv(inputs, outputs, kernel, stride, groups)
    return nn.Sequential(OrderedDict(conv=made, bn=nn.BatchNorm2d(outputs), act=nn.ReLU(inplace=True)))


class InvertedResidual(nn.Module):
    """A 1 x 1 convolution that widens, a depthwise one, and a linear one back; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = conv_bn_act(inputs, width, 1)
        self.depthwise = conv_bn_act(width, width, 3, stride, groups=width)
        self.project = nn.Sequential(OrderedDict(conv=conv(width, outputs, 1), bn=nn.BatchNorm2d(outputs)))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(ConvNet):
    """A stem of stride 2, stages ``layer0`` to ``layer6`` and a last 1 x 1 convolution.

    Args:
        width: Factor on all channels but the last.
        num_classes: Classes.
        in_chans: Channels of the images.
    """

    def __init__(self, width: float = 0.5, num_classes: int = 100, in_chans: int = 3) -> None:
        channels = int(32 * width)
        features: dict[str, nn.Module] = {"stem": conv_bn_act(in_chans, channels, 3, 2)}
        for stage, (expansion, outputs, blocks, stride) in enumerate(STAGES):
            layer = nn.Sequential()
            for index in range(blocks):
                layer.append(InvertedResidual(channels, int(outputs * width), 1 if index else stride, expansion))
                channels = int(outputs * width)
            features[f"layer{stage}"] = layer
        features["last"] = conv_bn_act(channels, 1280, 1)
        super().__init__(features, 1280, num_classes)
        init_kaiming(self)
        init_small_head(self)


register("mobilenetv2", MobileNetV2)
