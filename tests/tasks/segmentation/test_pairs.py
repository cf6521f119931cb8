"""Pairs: what they say of their networks is there, and networks of a user's come with taps."""

from __future__ import annotations

import pytest

from kdbench.configuration import config
from kdbench.configuration.resolved import PluginSpec
from kdbench.errors import KDBenchError
from kdbench.roles.sources import Network
from tasks.segmentation.task import Segmentation
from tests.tasks.segmentation import tiny

PAIRS = [name for name in config.options("pair") if config.option("pair", name).get("task") == "segmentation"]
#: Parameters of the networks for the 19 classes of Cityscapes, in millions.
SIZES = {
    "deeplabv3_resnet101_resnet18": (81.32, 13.61),
    "fcn_resnet101_resnet18": (56.68, 12.07),
    "pspnet_resnet101_resnet18": (60.09, 12.28),
    "resnet18_w32_w8": (2.87, 0.18),
    "segformer_pvt_b2_b0": (25.38, 3.54),
    "stdc_w64_w16": (7.62, 0.48),
}


def test_all_of_them_are_tested():
    assert set(PAIRS) == set(SIZES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "101" in n else ()) for n in PAIRS])
def test_the_taps_of_a_pair_are_there(name):
    pair, task = config.option("pair", name), tiny.shaped(19)
    widths = {}
    for side, size in zip(("teacher", "student"), SIZES[name], strict=True):
        architecture = {k: v for k, v in pair[side]["architecture"].items() if k != "pretrained"}
        model = task.build(architecture)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(size, abs=0.006)
        features = Network(task, model.eval(), pair[side]["taps"]).answer(tiny.batch(19, (64, 64), n=1)).features
        kinds = Segmentation.kinds(pair[side])
        assert {n: type(f) for n, f in features.items()} == kinds
        widths[side] = [*kinds]
    assert widths["teacher"] == widths["student"]


def test_the_paper_preset_with_a_published_pair_composes():
    found = config.load(
        ["task=segmentation", "data=cityscapes", "data.root=/data", "pair=deeplabv3_resnet101_resnet18", "preset=paper"]
    )
    assert found["data"]["transforms"]["crop"] == [512, 1024]
    assert (found["trainer"]["epochs"], found["data"]["batch_size"]) == (240, 16)
    assert found["pair"]["student"]["architecture"]["pretrained"] is True
    assert config.load(["task=segmentation", "data=voc", "preset=paper"])["trainer"]["epochs"] == 67


def bound(*overrides: str) -> dict[str, object]:
    loaded = config.load(["task=segmentation", *overrides])
    return dict(PluginSpec.of("method", loaded["method"]).bind(Segmentation, loaded["pair"]))


def test_a_backbone_by_its_name_has_the_head_of_the_other_network():
    pair = config.load(["task=segmentation", "student=timm/mobilenetv3_small_050", "method=fitnet"])["pair"]
    assert pair["student"]["architecture"] == {
        "_target_": "tasks.segmentation.models.create",
        "model_name": "mobilenetv3_small_050",
        "head_width": 64,
    }
    assert [*pair["student"]["taps"]] == ["stage1", "stage2", "stage3", "stage4", "neck"]
    assert bound("student=timm/mobilenetv3_small_050", "method=fitnet") == {"feature": "neck"}
    assert bound("student=mobilenetv3_small_050", "method=at") == {
        "stages": ["stage1", "stage2", "stage3", "stage4", "neck"]
    }


def test_the_deepest_levels_of_two_backbones_meet():
    two = ["teacher=vit_tiny_patch16_224", "student=resnet18", "student.head=fcn", "student.head_width=8"]
    pair = config.load(["task=segmentation", *two])["pair"]
    assert pair["student"]["architecture"]["head"] == "fcn"
    assert pair["teacher"]["taps"] == {f"stage{i + 2}": f"stages[{i}]" for i in range(3)} | {"neck": "decoder"}
    assert pair["student"]["taps"] == {f"stage{i + 1}": f"stages[{i}]" for i in range(4)} | {"neck": "decoder"}


def test_a_name_that_is_none_is_one_line():
    with pytest.raises(KDBenchError, match="model_name=resnet_18: there is no such model: did you mean 'resnet18'"):
        config.load(["task=segmentation", "student=timm/resnet_18"])
