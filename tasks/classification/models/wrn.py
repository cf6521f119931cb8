"""Wide ResNets (Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from tasks.classification.models.base import ConvNet, conv, init_kaiming, register


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions, each after its norm and ReLU, and a shortcut.

    Where the number of channels changes, the shortcut projects the activated input.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3)
        self.shortcut = None if inputs == width else conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        active = self.act1(self.bn1(x))
        y = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(ConvNet):
    """Stages ``layer1`` to ``layer3`` of pre-activation blocks; ``bn`` and ``act`` follow the last.

    Args:
        depth: ``6 n + 4`` for ``n`` blocks a stage.
        widen: Factor on the channels 16, 32, 64 of the stages.
        num_classes: Classes.
        in_chans: Channels of the images.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 100, in_chans: int = 3) -> None:
        channels = 16
        features: dict[str, nn.Module] = {"conv1": conv(in_chans, channels, 3)}
        for stage in range(3):
            made = []
            for index in range((depth - 4) // 6):
                made.append(PreActBlock(channels, 16 * widen << stage, 2 if stage and not index else 1))
                channels = 16 * widen << stage
            features[f"layer{stage + 1}"] = nn.Sequential(*made)
        features |= {"bn": nn.BatchNorm2d(channels), "act": nn.ReLU()}
        super().__init__(features, channels, num_classes)
        init_kaiming(self)
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)


for _depth in (16, 40):
    for _widen in (1, 2):
        register(f"wrn{_depth}_{_widen}", WideResNet, depth=_depth, widen=_widen)
