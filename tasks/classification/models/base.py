"""What the networks for small images share: a chain of modules, global pooling and a linear classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from kdbench.errors import KDBenchError


class ConvNet(nn.Module):
    """A chain of named modules, the mean over all positions, and the classifier ``fc``; the interface is timm's.

    Args:
        features: Modules by name, in their order.
        num_features: Channels of the last one.
        num_classes: 0 leaves out the classifier.
    """

    def __init__(self, features: Mapping[str, nn.Module], num_features: int, num_classes: int) -> None:
        super().__init__()
        for name, module in features.items():
            self.add_module(name, module)
        self.chain = tuple(features)
        self.feature_info = [{"module": name} for name in features if name.startswith("layer")]
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Returns the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the network a new classifier; pooling is always the mean."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the last feature map ``(B, num_features, H, W)``."""
        for name in self.chain:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools a feature map and classifies it."""
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits ``(B, num_classes)`` of images ``(B, C, H, W)`` of any size."""
        return self.forward_head(self.forward_features(x))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size, but for its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def init_kaiming(model: nn.Module) -> None:
    """Draws convolutions from a normal law scaled by their fan-out (He et al.)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_small_head(model: ConvNet) -> None:
    """Draws the classifier from a normal law of standard deviation 0.01, without bias."""
    if isinstance(model.fc, nn.Linear):
        nn.init.normal_(model.fc.weight, std=0.01)
        nn.init.zeros_(model.fc.bias)


def register(name: str, net: type[ConvNet], **defaults: Any) -> None:
    """Registers ``net(**defaults)`` with timm as ``cifar_<name>``; its options stay open to ``timm.create_model``."""

    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> ConvNet:
        if pretrained:
            raise KDBenchError(f"cifar_{name} has no published weights: leave out pretrained, or give init_from=FILE")
        return net(**{**defaults, **options})

    entry.__name__ = entry.__qualname__ = f"cifar_{name}"
    register_model(entry)
