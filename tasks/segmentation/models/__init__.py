"""Segmentation networks: a backbone of timm, a head over its levels, and one 1x1 convolution to the classes.

Taps of every network, whatever its backbone: ``stages[0]`` and on are the levels of stride 4 and more, shallow to deep,
``decoder`` is what the classifier reads, ``classifier`` its logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from kdbench.base.instantiate import check
from kdbench.base.startup import stand_ins
from kdbench.errors import KDBenchError, nearest
from tasks.hub import fetched
from tasks.segmentation.models.heads import FCN, HEADS, ONE_SIZE, Levels
from tasks.segmentation.models.stdc import STDCBackbone

with stand_ins({"wandb": None}):  # of which its training scripts make use
    import timm

#: Levels of a finer stride are the backbone's stem.
FINEST = 4
#: Backbones that timm has not.
OWN = {"stdc": STDCBackbone}
#: Options of a network that are no backbone's.
HEAD_OPTIONS = ("head", "head_width", "aux", "dropout")


class Segmenter(nn.Module):
    """A backbone whose levels a head joins to one map, from which a 1x1 convolution tells the classes.

    ``forward`` takes images ``(B, C, H, W)`` and returns logits ``(B, classes, h, w)`` at the stride of the head; with
    an auxiliary head, in training mode, the logits of both. A network made for more channels than it is given (a label
    channel, which only training has) reads zeros in their place.

    Args:
        backbone: Of timm, with ``features_only``.
        head: Name of the head; see :data:`~tasks.segmentation.models.heads.HEADS`.
        width: Channels of the map that the classifier reads.
        classes: How many there are.
        channels: Channels of the input.
        aux: Adds a head over the last level but one, for training alone.
        dropout: Before the classifier.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: str,
        width: int,
        classes: int,
        channels: int = 3,
        aux: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        info: Any = backbone.feature_info
        strides = info.reduction()
        self.picked = [i for i, stride in enumerate(strides) if stride >= FINEST]
        widths = [info.channels()[i] for i in self.picked]
        levels = Levels(tuple(widths), tuple(strides[i] for i in self.picked))
        self.channels = channels
        self.backbone = backbone
        self.stages = nn.ModuleList(nn.Identity() for _ in self.picked)
        self.decoder = HEADS[head](levels, width)
        self.any_size = head not in ONE_SIZE
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.classifier = nn.Conv2d(width, classes, 1)
        self.aux: nn.Module | None = None
        if aux:
            between = FCN(Levels(levels.widths[:-1], levels.strides[:-1]), width)
            self.aux = nn.Sequential(between, nn.Conv2d(width, classes, 1))
        self.widths = widths

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits."""
        absent = self.channels - images.shape[1]
        if absent > 0:
            images = torch.cat([images, images.new_zeros(len(images), absent, *images.shape[2:])], 1)
        found = self.backbone(images)
        maps = [
            stage(found[i] if found[i].shape[1] == width else found[i].permute(0, 3, 1, 2))
            for i, stage, width in zip(self.picked, self.stages, self.widths, strict=True)
        ]
        logits = self.classifier(self.dropout(self.decoder(maps)))
        return (logits, self.aux(maps[:-1])) if self.aux is not None and self.training else logits


def create(
    model_name: str,
    num_classes: PositiveInt,
    in_chans: PositiveInt = 3,
    head: str = "fpn",
    head_width: PositiveInt = 64,
    aux: bool = False,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    **options: Any,
) -> Segmenter:
    """Creates a network.

    Args:
        model_name: The backbone, by its timm name; ``stdc`` is that of STDC-Seg.
        num_classes: Of the classifier.
        in_chans: Channels of the input: 3, or 4 with a label channel.
        head: ``fpn``, ``fcn``, ``deeplabv3``, ``pspnet``, ``segformer`` or ``stdc``.
        head_width: Channels of the map that the classifier reads.
        aux: Whether an auxiliary head over the last level but one is trained too.
        dropout: Before the classifier.
        options: Further options of the backbone, e.g. ``output_stride``, ``channels`` or ``pretrained``.

    Raises:
        KDBenchError: There is no such backbone or head, or it has no such option.
    """
    if head not in HEADS:
        raise KDBenchError(f"head={head}: there is no such head: {nearest(head, HEADS)}")
    backbone = make_backbone(model_name, in_chans, options)
    try:
        return Segmenter(backbone, head, head_width, num_classes, in_chans, aux, dropout)
    except ValueError as error:
        raise KDBenchError(f"model_name={model_name} head={head}: {error}") from None


def make_backbone(name: str, in_chans: int, options: Mapping[str, Any]) -> nn.Module:
    """Creates a backbone: a module that returns maps, with ``feature_info`` of their channels and strides.

    Raises:
        KDBenchError: There is none of that name, it has no such option, or it gives no maps.
    """
    if name in OWN:
        return OWN[name](**check(f"model_name={name}", OWN[name], {"in_chans": in_chans, **options}))
    if not timm.is_model(name):
        known = [*OWN, *timm.list_models()]
        raise KDBenchError(f"model_name={name}: there is no such model: {nearest(name, known)}")
    try:
        with fetched(name) if options.get("pretrained") else nullcontext():
            backbone: nn.Module = timm.create_model(name, features_only=True, in_chans=in_chans, **options)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        listed = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        said = " ".join(str(error).split()) or type(error).__name__
        raise KDBenchError(f"model_name={name} with {listed} gives no maps (timm's features_only): {said}") from None
    return backbone
