"""A small variational autoencoder of images, which a learned augmentation perturbs the latents of.

Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014. It is a network of the task like any other, since a
head reads the classes off its latents: so it is trained, kept and resumed as all networks are, its latents tell classes
apart, and its validation score says whether they do.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.features import Grid
from kdbench.functional.hard_vae import vae_losses
from kdbench.needs import Need
from kdbench.plugin import Plugin
from kdbench.signals import Context, Signals


class Autoencoder(nn.Module):
    """Maps of latents at a quarter of the resolution, and class scores of them.

    In train mode latents are drawn (from torch's global generator, as dropout is), in eval mode they are the means.

    Args:
        num_classes: Of the head.
        in_chans: Channels of the images.
        latents: Of each place.
        width: Channels of the layers.
        dense: Whether the head gives maps of class scores.
    """

    def __init__(self, num_classes: int, in_chans: int, latents: int = 8, width: int = 32, dense: bool = False) -> None:
        super().__init__()

        def layer(before: int, after: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.SiLU())

        self.latents, self.dense = latents, dense
        self.encoder = nn.Sequential(
            layer(in_chans, width, 2), layer(width, width, 2), nn.Conv2d(width, 2 * latents, 1)
        )
        self.decoder = Decoder([layer(latents, width), layer(width, width), nn.Conv2d(width, in_chans, 3, padding=1)])
        self.head = nn.Conv2d(latents, num_classes, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance of the latents of images ``(B, C, H, W)``, ``(B, latents, h, w)`` each."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores ``(B, classes)``, or ``(B, classes, h, w)``; the decoder runs for those who tap it."""
        mean, log_variance = self.encode(images)
        drawn = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        self.decoder(drawn, images.shape[2:])
        scores: Tensor = self.head(mean)
        return scores if self.dense else scores.mean((2, 3))


class Decoder(nn.ModuleList):
    """Layers with an enlargement before the second and the third."""

    def forward(self, latents: Tensor, size: torch.Size) -> Tensor:
        """Returns images ``(B, C, *size)`` of latents."""
        half = [-(-side // 2) for side in size]
        first, second, third = self
        x = F.interpolate(first(latents), half, mode="bilinear", align_corners=False)
        x = F.interpolate(second(x), list(size), mode="bilinear", align_corners=False)
        images: Tensor = third(x)
        return images


class Autoencoding(Plugin):
    """Trains an :class:`Autoencoder` by the variational bound, beside the supervised loss of its head."""

    needs: ClassVar[tuple[Need, ...]] = (
        Need("code", Grid, ("student",)),
        Need("reconstruction", Grid, ("student",)),
    )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``reconstruction`` and ``kl``."""
        code, images = (signals.feature(name, "student").values for name in ("code", "reconstruction"))
        inputs: Any = signals.batch().inputs
        error, divergence = vae_losses(inputs, images, *code.chunk(2, dim=1))
        return {"reconstruction": error, "kl": divergence}
