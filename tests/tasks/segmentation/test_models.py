"""Networks: sizes, strides, taps, and the label channel that is absent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.configuration import config
from kdbench.errors import KDBenchError
from kdbench.roles.sources import find_module
from tasks.segmentation.models import create
from tasks.segmentation.models.heads import HEADS
from tasks.segmentation.models.stdc import Concatenate
from tests.tasks.segmentation import tiny

OPTIONS: dict[str, Any] = {name: value for name, value in tiny.NET.items() if name not in ("_target_", "model_name")}


def test_the_default_pair_is_sixteen_times_apart():
    pair = config.load(["task=segmentation"])["pair"]
    sizes = {}
    for side in ("teacher", "student"):
        architecture = {k: v for k, v in pair[side]["architecture"].items() if k != "_target_"}
        model = create(num_classes=12, **architecture)
        sizes[side] = sum(p.numel() for p in model.parameters())
        for path in pair[side]["taps"].values():
            find_module(model, path.partition(":")[0])
    assert sizes == {"teacher": 2_870_332, "student": 180_616}


@pytest.mark.parametrize(
    ("head", "stride"), [("fpn", 4), ("fcn", 32), ("deeplabv3", 32), ("pspnet", 32), ("segformer", 4), ("stdc", 8)]
)
def test_logits_come_at_the_stride_of_the_head(head, stride):
    model = create("resnet18", 5, head=head, **OPTIONS)
    assert set(HEADS) >= {head}
    for size in ((64, 96), (65, 97)):
        found = model.eval()(torch.randn(2, 3, *size))
        assert found.shape == (2, 5, *(-(-side // stride) for side in size))
    model.train()(torch.randn(1, 3, 64, 64)).sum().backward()  # also of one image
    assert all(p.grad is not None for p in model.parameters())


def test_dilation_keeps_the_resolution():
    model = create("resnet18", 5, head="deeplabv3", output_stride=8, **OPTIONS).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5, 8, 12)
    assert [branch[0].dilation[0] for branch in model.decoder.branches] == [1, 12, 24, 36]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "options", "levels"),
    [
        ("stdc", {"width": 8}, 4),
        ("mobilenetv3_small_050", {}, 4),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1, 1, 1)},
            4,
        ),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3, "embed_dim": 24}, 3),
    ],
)
def test_any_backbone_that_gives_maps(name, options, levels):
    model = create(name, 5, head_width=8, **options).eval()
    assert len(model.stages) == levels
    seen: list[tuple[int, ...]] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _m, _a, out: seen.append(tuple(out.shape)))
    assert model(torch.randn(1, 3, 64, 64)).shape[:2] == (1, 5)
    assert [shape[1] for shape in seen] == model.widths


def test_a_module_of_stdc_has_the_width_of_all_its_convolutions():
    for stride in (1, 2):
        module = Concatenate(8, 32, stride)
        assert [unit[0].out_channels for unit in module.units] == [16, 8, 4, 4]  # type: ignore[index]
        assert module(torch.randn(2, 8, 9, 12)).shape == (2, 32, -(-9 // stride), 12 // stride)


def test_an_auxiliary_head_is_there_in_training_alone():
    model = create("resnet18", 5, aux=True, **OPTIONS)
    logits, aux = model(torch.randn(2, 3, 64, 64))
    assert (logits.shape, aux.shape) == ((2, 5, 16, 16), (2, 5, 4, 4))
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 16, 16)


def test_an_absent_label_channel_is_zero():
    model = create("resnet18", 5, in_chans=4, **OPTIONS).eval()
    images = torch.randn(2, 3, 32, 32, generator=rng.generator(0, "images"))
    zeroed = torch.cat([images, torch.zeros(2, 1, 32, 32)], 1)
    assert torch.equal(model(images), model(zeroed))
    assert not torch.equal(model(images), model(zeroed + torch.tensor([0.0, 0, 0, 1]).view(4, 1, 1)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model_name": "resnet19"}, "model_name=resnet19: there is no such model: did you mean 'resnet"),
        ({"head": "fpm"}, "head=fpm: there is no such head: did you mean 'fpn'"),
        ({"model_name": "stdc", "wide": 3}, "model_name=stdc.wide: unknown key: did you mean 'width'"),
        (
            {"model_name": "vgg11", "out_indices": [1, 2], "head": "stdc"},
            "head stdc reads three levels, this backbone has",
        ),
        ({"depth": 3}, "model_name=resnet18 with depth=3 gives no maps .timm's features_only.: "),
    ],
)
def test_bad_options_are_one_line(options, line):
    with pytest.raises(KDBenchError, match=line) as error:
        create(**{"model_name": "resnet18", "num_classes": 3, **options})
    assert "\n" not in str(error.value)
