"""The pairs of ``conf/`` and the protocols that their presets follow."""

from __future__ import annotations

import csv
import functools
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.base.weights import save_weights
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import resolve
from kdbench.features import Activated, Grid, Last, Tokens
from kdbench.methods.fitnet import FitNet
from kdbench.roles.sources import Network, find_module
from kdbench.runs.trainings import Trainings
from kdbench.signals import total
from kdbench.training.fit import Training
from tasks.classification.task import Classification
from tasks.pointcloud.task import PointCloud
from tests.tasks.classification import tiny

SAME = ["wrn40_2_wrn16_2", "wrn40_2_wrn40_1", "resnet56_resnet20", "resnet110_resnet20", "resnet110_resnet32"]
SAME += ["resnet32x4_resnet8x4", "vgg13_vgg8"]
CROSS = ["vgg13_mobilenetv2", "resnet50_mobilenetv2", "resnet50_vgg8", "resnet32x4_shufflenetv1"]
CROSS += ["resnet32x4_shufflenetv2", "wrn40_2_shufflenetv1"]
#: Pairs for the digits and for rendered characters, with the sides of these images.
SMALL = {"resnet8_w16_w4": 8, "cnn_vit_small": 8, "resnet8_w24_w8": 16, "cnn_vit_glyphs": 16}
OTHER = [*SMALL, "resnet34_resnet18"]


def pairs() -> list[str]:
    return sorted({*SAME, *CROSS, *OTHER})


def loaded(pair: str, *overrides: str) -> dict[str, Any]:
    return config.load(["task=classification", f"pair={pair}", *overrides])


def test_these_are_the_pairs():
    """That of digits on a canvas has no stages and is tested with them."""
    others = {p for p in config.options("pair") if config.option("pair", p).get("task") not in (None, "classification")}
    assert {*config.options("pair")} - others == {*pairs(), "cnn_mlp_canvas"}
    assert config.load(["task=classification"])["pair"]["name"] == "resnet8_w24_w8"


@pytest.mark.parametrize("name", pairs())
def test_taps_and_parts_of_a_pair(name):
    """Every tap gives what the configuration says, at a resolution that falls, and both sides have as many stages."""
    pair = loaded(name)["pair"]
    task = tiny.shaped((SMALL[name], SMALL[name]), 1, 10) if name in SMALL else tiny.shaped((32, 32))
    stages = []
    for side in ("teacher", "student"):
        kinds = Classification.kinds(pair[side])
        with rng.scope(0, name, side):
            model = task.build(pair[side]["architecture"])
        network = Network(task, model, pair[side]["taps"]).eval()
        with torch.no_grad():
            features = network.answer(tiny.batch(task)).features
        assert [*features] == [*kinds]
        assert all(type(features[n]) is kind for n, kind in kinds.items())
        classifier = find_module(model, pair[side]["parts"]["classifier"])
        torch.testing.assert_close(classifier(features["pooled"].values), features["logits"].values)
        if "vit" not in model_name(pair, side):
            last = features["last"]
            assert isinstance(last, Last)
            torch.testing.assert_close(classifier(last.values.mean((2, 3))), features["logits"].values)
        own = [n for n in kinds if n.startswith("stage")]
        assert own == sorted(own)
        stages.append(own)
        grids = [features[n] for n in own]
        if side == "student" and name.startswith("cnn_vit"):
            assert all(isinstance(f, Tokens) and f.prefix == 1 and f.grid == (4, 4) for f in grids)
            continue
        strides = [f.stride[0] for f in grids if isinstance(f, Grid) and f.stride]
        assert strides == sorted(strides)
        for feature in grids:
            assert isinstance(feature, Activated)
            assert feature.pre.shape == feature.values.shape
            if "wrn" in model_name(pair, side):
                continue  # its stages are sums; the activation belongs to the next
            expected = feature.pre if "mobilenet" in model_name(pair, side) else feature.pre.relu()
            torch.testing.assert_close(feature.values, expected)
            # timm starts the last norm of a block at zero: only the shortcut passes, which is positive.
            assert feature.pre.min() < 0 or name == "resnet34_resnet18"
    assert stages[0] == stages[1]


def model_name(pair: dict[str, Any], side: str) -> str:
    return str(pair[side]["architecture"]["model_name"])


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("data", ["classification", "digits", "cifar100", "mnist1d"])
def test_presets_compose(preset, data):
    composed = config.load(["task=classification", f"data={data}", f"preset={preset}"])
    assert composed["task"]["name"] == "classification"
    assert (composed["trainer"]["epochs"] == 240) is (preset == "paper")


@pytest.mark.parametrize("name", [*SAME, *CROSS])
def test_the_published_protocol(name):
    composed = loaded(name, "preset=paper", "data=cifar100", "data.root=/data")
    assert (composed["trainer"]["epochs"], composed["data"]["batch_size"]) == (240, 64)
    assert composed["data"]["transforms"] == {"crop": 4, "flip": True, "scale": None}
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    assert composed["trainer"]["optimizer"] == sgd
    student_lr = 0.01 if name.endswith(("netv1", "netv2")) else 0.05
    assert composed["student"]["trainer"]["optimizer"] == sgd | {"lr": student_lr}
    milestones = composed["trainer"]["scheduler"]["milestones"]
    assert [m * 240 for m in milestones] == [150, 180, 210]


def test_the_published_protocol_on_imagenet():
    composed = loaded("resnet34_resnet18", "preset=paper", "data=imagefolder", "data.root=/data")
    assert (composed["trainer"]["epochs"], composed["data"]["batch_size"]) == (100, 256)
    for optimizer in (composed["trainer"]["optimizer"], composed["student"]["trainer"]["optimizer"]):
        assert (optimizer["lr"], optimizer["weight_decay"]) == (0.1, 1e-4)
    assert [m * 100 for m in composed["trainer"]["scheduler"]["milestones"]] == [30, 60, 90]


def sources() -> list[dict[str, str]]:
    """What was published for method and pair, one value a row: its key once composed, and the file it was read in."""
    with Path(__file__).with_name("published.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", sorted({row["pair"] for row in sources()}))
def test_the_paper_preset_has_what_was_published_for_the_pair(name):
    rows = [row for row in sources() if row["pair"] == name]
    for method in sorted({row["method"] for row in rows}):
        composed = loaded(name, f"method={method}", "preset=paper")
        for row in rows:
            if row["method"] == method:
                found = functools.reduce(operator.getitem, row["key"].split("."), composed)
                assert found == pytest.approx(yaml.safe_load(row["value"])), row


@pytest.mark.parametrize("name", pairs())
def test_every_published_value_has_its_source(name):
    rows = [row for row in sources() if row["pair"] == name]
    for method, given in (loaded(name)["pair"].get("published") or {}).items():
        keys = [row["key"].removesuffix(".value").rpartition(".")[2] for row in rows if row["method"] == method]
        assert set(given) <= set(keys), method


def test_a_schedule_of_the_method_is_not_that_of_the_teacher():
    """MLKD's longer schedules and its batch on ImageNet: the teacher stays that of every other method."""
    for name in ("resnet32x4_shufflenetv1", "resnet34_resnet18"):
        own, other = (loaded(name, "data=cifar100", f"method={m}", "preset=paper") for m in ("mlkd", "kd"))
        assert own["trainer"] == other["trainer"]
        assert own["teacher"]["data"] == other["data"]
    assert loaded("vgg13_vgg8", "method=mlkd", "preset=paper", "trainer.epochs=3")["student"]["trainer"]["epochs"] == 3


@pytest.mark.parametrize("name", [*SAME, *CROSS, "resnet8_w16_w4", "resnet8_w24_w8"])
def test_the_hint_is_that_of_the_second_stage(name):
    pair, method = (loaded(name, "method=fitnet")[key] for key in ("pair", "method"))
    assert bind(FitNet, Classification, pair, method["bind"]) == {"feature": "stage2"}
    method = loaded(name, "method=fitnet", "method.bind.feature=stage1")["method"]
    assert bind(FitNet, Classification, pair, method["bind"]) == {"feature": "stage1"}


def test_a_pair_without_a_hint_of_its_own_has_the_deepest_grid():
    for overrides, task, feature in (
        (["task=classification", "pair=resnet34_resnet18"], Classification, "stage4"),
        (["task=pointcloud"], PointCloud, "neck"),
    ):
        composed = config.load([*overrides, "method=fitnet"])
        assert composed["method"]["bind"] == {"feature": None}
        assert bind(FitNet, task, composed["pair"], composed["method"]["bind"]) == {"feature": feature}


@pytest.mark.parametrize("name", ["resnet56_resnet20", "cnn_vit_small"])
def test_the_paper_preset_takes_two_steps(name, tmp_path):
    composed = loaded(name, "preset=paper", "method=kd", "data.workers=0", "data.batch_size=8", "data.labels=50")
    run = resolve(composed, Store(tmp_path / "cache"))
    task: Any = run.task
    save_weights(task.build(composed["pair"]["teacher"]["architecture"]), tmp_path / "teacher.safetensors")
    training = Training(Trainings(run).student_recipe(), task, {"teacher": tmp_path / "teacher.safetensors"})
    distiller = training.distiller()
    batch = training.first_batch()
    distiller.rehearse(batch)
    distiller.train()
    before = {n: p.detach().clone() for n, p in distiller.trainable()}
    optimizer = torch.optim.SGD([p for _, p in distiller.trainable()], 0.05)
    for _ in range(2):
        terms = {n: v for found in distiller.every_term(batch).values() for n, v in found.items()}
        assert set(terms) == {"task", "kd"}
        optimizer.zero_grad()
        total(terms.values()).backward()
        optimizer.step()
    assert all(p.isfinite().all() for _, p in distiller.trainable())
    assert any(not torch.equal(p, before[n]) for n, p in distiller.trainable())
