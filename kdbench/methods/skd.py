"""Structured knowledge distillation.

Paper: Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019:
pixel-wise KD at temperature 1, similarities of all pairs of places (pair-wise), and a discriminator of the maps of
class scores that trains against the student (holistic).
Terms, discriminator and its optimizer as in the released code. Weights, the hinge and patches of two cells are those
under which Yang et al. (CIRKD, CVPR 2022) compare it; the authors' run has ``adversary=wgan``, weights of 10 for KD (a
sum over the batch), 1 for the pairs, 0.1 for the holistic term, and patches of half the map.
Deviations: the discriminator takes maps of any size: it halves them four times or until a side is one, and its last
convolution is as large as what is left, at most 4, where theirs needs maps of 65 cells. Positions of the ignored label
have no part in KD.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from kdbench import Context, Grid, Logits, Method, Need, Signals, Update
from kdbench.functional.numerics import safe_mean, upcast
from kdbench.functional.pool import pool_to_smaller
from kdbench.functional.skd import Adversary, critic_loss, gradient_penalty, pair_wise_loss
from kdbench.methods.blocks import BatchNorm, conv, pixel_kd

#: Halvings of the discriminator at most, and the share of the width that its attention compares.
DEPTH, COMPARED = 4, 8


class Attention(nn.Module):
    """Self-attention over the places of a grid, which starts with no weight (SAGAN)."""

    def __init__(self, axes: int, width: int) -> None:
        super().__init__()
        compared = max(1, width // COMPARED)
        self.query, self.key = (conv(axes, width, compared, bias=True) for _ in range(2))
        self.value = conv(axes, width, width, bias=True)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, grid: Tensor) -> Tensor:
        """Takes and gives ``(B, C, *space)``."""
        query, key, value = (layer(grid).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(2)
        return grid + self.gamma * (value @ weights.transpose(1, 2)).view(grid.shape)


class Discriminator(nn.Sequential):
    """Scores maps of class scores: normalised, halved by spectrally normalised convolutions, attended to at the end."""

    def __init__(self, classes: int, size: tuple[int, ...], width: int) -> None:
        axes, inputs, layers = len(size), classes, list[nn.Module]()
        for depth in range(DEPTH):
            if min(size) < 2:
                break
            layers += [spectral_norm(conv(axes, inputs, width, 4, True, 2, padding=1)), nn.LeakyReLU(0.1)]
            layers += [Attention(axes, width)] if depth >= DEPTH - 2 else []
            inputs, width, size = width, 2 * width, tuple(cells // 2 for cells in size)
        super().__init__(BatchNorm(classes), *layers, conv(axes, inputs, 1, min(4, *size), True, padding=0))


class SKD(Method):
    """Compares pixels, pairs of places, and whole maps through a discriminator.

    Args:
        patch: Cells of a place along each axis.
        adversary: ``hinge``, or ``wgan`` with gradient penalty.
        penalty: Weight of that penalty in the discriminator's term.
        width: Of the discriminator's first layer.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid), Need("logits", Logits))
    requires: ClassVar[frozenset[str]] = frozenset({"dense_label"})

    def __init__(
        self,
        patch: PositiveInt = 2,
        adversary: Adversary = "hinge",
        penalty: PositiveFloat = 10.0,
        width: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.adversary: Adversary = adversary
        self.penalty = penalty
        self.width = width

    def build(self, probe: Signals) -> None:
        """Makes the discriminator."""
        _, classes, *size = probe.feature("logits", "student").values.shape
        self.discriminator = Discriminator(classes, tuple(size), self.width)

    def updates(self) -> tuple[Update, ...]:
        """The student, and the discriminator on the same answers."""
        return Update(None, ("student",)), Update({"discriminator": 1.0}, ("own",))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd``, ``pair`` and ``holistic`` of the student, and ``discriminator``."""
        terms: dict[str, Tensor] = {}
        student, teacher = (upcast(feature.values) for feature in signals.pair("logits"))
        if ctx.wants("kd"):
            terms["kd"] = pixel_kd(signals)
        if ctx.wants("pair"):
            ours, theirs = signals.pair("feature")
            terms["pair"] = pair_wise_loss(*pool_to_smaller(ours.values, theirs.values, "skd"), patch=self.patch)
        if ctx.wants("holistic"):
            terms["holistic"] = -safe_mean(upcast(self.discriminator(student)))
        if ctx.wants("discriminator"):
            student = student.detach()
            loss = critic_loss(self.discriminator(student), self.discriminator(teacher), self.adversary)
            if self.adversary == "wgan":
                share = torch.rand(len(student), generator=ctx.generator("skd")).to(student.device)
                loss = loss + self.penalty * gradient_penalty(self.discriminator, student, teacher, share)
            terms["discriminator"] = loss
        return terms
