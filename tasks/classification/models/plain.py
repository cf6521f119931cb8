"""Two plain networks that know shifts and do not: convolutions under a global maximum, and layers over all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt
from timm.layers import BlurPool2d
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three 3x3 convolutions with BatchNorm, the first two pooled, under a global maximum.

    Args:
        num_classes: Of the classifier.
        in_chans: Channels of the images.
        width: Channels of the first convolution; twice and four times as many follow.
        pool: ``max`` takes every second maximum, another one after a shift of one pixel; ``blur`` low-passes them
            first (Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019).
    """

    def __init__(
        self, num_classes: int, in_chans: int, width: PositiveInt = 16, pool: Literal["max", "blur"] = "max"
    ) -> None:
        super().__init__()
        widths = (in_chans, width, 2 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.pool = nn.MaxPool2d(2) if pool == "max" else nn.Sequential(nn.MaxPool2d(2, 1), BlurPool2d())
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores ``(B, classes)`` of images ``(B, C, H, W)``."""
        first, second, third = self.stages
        features = third(self.pool(second(self.pool(first(images)))))
        scores: Tensor = self.head(features.amax((2, 3)))
        return scores


class Perceptron(nn.Sequential):
    """Fully connected layers over all pixels.

    Args:
        num_classes: Of the last layer.
        in_chans: Channels of the images.
        img_size: Height and width of the images.
        hidden: Widths of the layers between.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: tuple[int, int],
        hidden: Sequence[PositiveInt] = (256, 128),
    ) -> None:
        widths = (in_chans * img_size[0] * img_size[1], *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))
