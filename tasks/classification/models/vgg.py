"""VGG with batch norm and one linear layer (Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tasks.classification.models.base import ConvNet, init_kaiming, init_small_head, register


class VGG(ConvNet):
    """Stages ``layer0`` to ``layer4`` of 64 to 512 channels, pooled after each of the first three.

    Pooling rounds up, so that images of any size pass.

    Args:
        convs: Convolutions a stage.
        num_classes: Classes.
        in_chans: Channels of the images.
    """

    def __init__(self, convs: int, num_classes: int = 100, in_chans: int = 3) -> None:
        channels = in_chans
        features: dict[str, nn.Module] = {}
        for stage, width in enumerate((64, 128, 256, 512, 512)):
            layer = nn.Sequential()
            for _ in range(convs):
                layer.append(conv_bn_act(channels, width))
                channels = width
            features[f"layer{stage}"] = layer
            if stage < 3:
                features[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
        super().__init__(features, channels, num_classes)
        init_kaiming(self)
        init_small_head(self)


def conv_bn_act(inputs: int, outputs: int) -> nn.Sequential:
    """A 3 x 3 convolution with bias, norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), act=nn.ReLU()))


register("vgg8", VGG, convs=1)
register("vgg13", VGG, convs=2)
