"""The networks for small images.

Parameter counts are those of the definitions that RepDistiller released, with 100 classes; the published tables print
them in millions. Run once side by side with equal weights (outside of this repository), logits and gradients of
resnet20, resnet8x4, resnet50, wrn16_2, wrn40_1, vgg8, vgg13, mobilenetv2, shufflenetv1 and shufflenetv2 were equal to
float32 rounding, in eval and in train mode.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks import hub
from tasks.classification import models

PARAMS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet50": 23_705_252,
    "wrn16_1": 180_916,
    "wrn16_2": 703_284,
    "wrn40_1": 569_780,
    "wrn40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
#: Side of the last feature map of a 32 x 32 image.
LAST = {"resnet50": 4, "mobilenetv2": 2, "vgg8": 4, "vgg13": 4, "shufflenetv1": 4, "shufflenetv2": 4}
SMALL = ("resnet8", "wrn16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2")


def create(model_name: str, **options: Any) -> Any:
    """A model whose parts are read by name."""
    return models.create(model_name, **options)


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Iterator[list[str]]:
    """A machine without a network, with an empty cache of the hub; yields what was asked of the hub."""
    asked: list[str] = []

    def refuse(url: str, **options: Any) -> None:
        asked.append(url)
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=refuse))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.reachable.cache_clear()
    yield asked
    hub.reachable.cache_clear()


def test_without_a_network_pretrained_is_one_line_at_once(offline):
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(
            KDBenchError, match="model_name=test_resnet pretrained=true: there is no network to"
        ) as error:
            create("test_resnet", pretrained=True, num_classes=3)
        assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10
    assert len(offline) == 1
    assert not constants.HF_HUB_OFFLINE


def test_without_a_network_pretrained_takes_what_the_cache_has(offline, tmp_path):
    model: Any = timm.create_model("test_resnet")
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_file(model.state_dict(), snapshot / "model.safetensors")
    assert torch.equal(create("test_resnet", pretrained=True).fc.weight, model.fc.weight)


def test_with_a_network_the_hub_is_asked_as_ever(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: constants.HF_HUB_OFFLINE)
    assert create("test_resnet", pretrained=True) is False


def test_a_network_without_published_weights_says_so():
    with pytest.raises(KDBenchError, match="cifar_resnet8 has no published weights"):
        create("cifar_resnet8", pretrained=True)


def test_every_network_is_known_to_timm():
    assert sorted(timm.list_models("cifar_*")) == sorted(f"cifar_{name}" for name in PARAMS)


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        model: Any = timm.create_model(f"cifar_{name}", num_classes=100).eval()
        features = model.forward_features(torch.zeros(2, 3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]
    side = LAST.get(name, 8)
    assert features.shape == (2, model.num_features, side, side)


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (1, (1, 40)), (3, (13, 7))])
def test_images_of_any_size(size, channels):
    for name in SMALL:
        model = create(f"cifar_{name}", num_classes=10, in_chans=channels, img_size=size).eval()
        assert model(torch.zeros(2, channels, *size)).shape == (2, 10), name


@pytest.mark.parametrize("name", SMALL)
def test_the_interface_is_that_of_timm(name):
    with rng.scope(0, name):
        model = create(f"cifar_{name}", num_classes=7).eval()
        images = torch.randn(2, 3, 16, 16)
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features), model(images))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(pooled), model(images))
    model.reset_classifier(3)
    assert (model(images).shape, model.num_classes) == ((2, 3), 3)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_trains(name):
    with rng.scope(0, name):
        model = create(f"cifar_{name}", num_classes=7)
        model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_initial_weights():
    with rng.scope(0, "initial"):
        resnet, wide, vgg, mobile = (create(f"cifar_{n}") for n in ("resnet20", "wrn16_2", "vgg8", "mobilenetv2"))
    for conv in (resnet.layer3[0].conv1, wide.layer3[0].conv1, vgg.layer4[0].conv, mobile.last.conv):
        fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for model in (vgg, mobile):
        assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not model.fc.bias.any()
    assert not wide.fc.bias.any()
    assert not vgg.layer4[0].conv.bias.any()
    norms = [m for m in resnet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_width_scales_a_resnet():
    narrow = create("cifar_resnet8", width=4, num_classes=10, in_chans=1)
    assert sum(p.numel() for p in narrow.parameters()) == 5142
    assert narrow.num_features == 16


def test_any_model_of_timm_by_name():
    with torch.device("meta"):
        vit = create("vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=(8, 8), patch_size=2, depth=1)
        resnet = create("resnet18", num_classes=10, in_chans=1, img_size=(8, 8))
    assert vit.patch_embed.grid_size == (4, 4)
    assert resnet.conv1.weight.shape[1] == 1
    assert resnet.fc.out_features == 10


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"model_name": "cifar_resnet21"},
            r"model_name=cifar_resnet21: there is no such model: did you mean 'cifar_re",
        ),
        ({"model_name": "resnet1"}, r"model_name=resnet1: there is no such model: did you mean 'resnet1"),
        (
            {"model_name": "cifar_vgg8", "width": 3},
            r"model_name=cifar_vgg8 with width=3: .*unexpected keyword argument 'width'",
        ),
        (
            {"model_name": "resnet18", "widht": 3},
            r"model_name=resnet18 with widht=3: .*unexpected keyword argument 'widht'",
        ),
        (
            {"model_name": "cifar_vgg8", "pretrained": True},
            r"cifar_vgg8 has no published weights: leave out pretrained",
        ),
    ],
)
def test_bad_input_is_one_line(options, line):
    with pytest.raises(KDBenchError, match=line) as error:
        create(**options, img_size=(8, 8))
    assert "\n" not in str(error.value)
