"""The data sets and presets of classification as they are configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.configuration import config
from kdbench.reference import entries
from tests.tasks.classification import layouts

DATA_SETS = ("digits", "glyphs", "mnist1d", "cifar10", "cifar100", "mnist", "fashion_mnist", "imagefolder")


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_opens_with_its_own_options(name, tmp_path):
    options = config.load(["task=classification", f"data={name}"])["data"]
    assert options.pop("protocol").keys() <= {"quick", "paper", "smoke", "ssld", "pruned"}
    assert options.pop("task") == "classification"
    assert options.pop("name") == options["source"]
    roots: dict[str, Callable[[Path], Path]] = {
        "cifar10": layouts.cifar10_binary,
        "mnist": layouts.mnist,
        "fashion_mnist": layouts.mnist,
        "imagefolder": layouts.image_folder,
    }
    if name == "cifar100":
        folder, labels = tmp_path / "cifar-100-binary", np.arange(300) % 100
        for part in ("train", "test"):
            layouts.cifar_binary(folder, part, layouts.images(300), labels, coarse=True)
        options["root"] = str(tmp_path)
    elif name in roots:
        options["root"] = str(roots[name](tmp_path / "data"))
    images = layouts.open_with(tmp_path / "cache", **{**options, "workers": 0, "batch_size": 8})
    assert images.sizes["val"] > 0
    batch = next(iter(images.module(0).train_dataloader()))
    assert batch.inputs.shape == (8, images.preprocess.channels, *images.preprocess.size)
    assert len(images.preprocess.classes) == {"cifar100": 100, "imagefolder": 3, "glyphs": 47}.get(name, 10)
    assert batch.targets.max() < len(images.preprocess.classes)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_states_what_differs(name):
    """The rest is shared, and the pair is its own."""
    shared = entries(config.folder() / "data" / "_images.yaml")
    own = entries(config.folder() / "data" / f"{name}.yaml")
    repeated = {(e.key, e.value) for e in own} & {(e.key, e.value) for e in shared}
    assert repeated <= {("mean", "null"), ("background", "null"), ("root", "null")}  # which have other meanings there
    composed = config.load(["task=classification", f"data={name}"])
    assert {entry.key for entry in shared} <= {"transforms", *composed["data"]}
    assert composed["pair"]["name"] == {"glyphs": "resnet8_w24_w8"}.get(name, "resnet8_w16_w4")


RATES = {
    "digits": 2e-2,
    "glyphs": 2e-2,
    "mnist1d": 1e-2,
    "mnist": 1e-3,
    "fashion_mnist": 1e-3,
    "cifar10": 1e-3,
    "cifar100": 1e-3,
}


@pytest.mark.parametrize("preset", ["quick", "smoke"])
def test_a_rate_belongs_to_the_data_set_that_it_was_chosen_for(preset):
    def found(*overrides: str) -> tuple[float, float, int]:
        made = config.load(["task=classification", f"preset={preset}", *overrides])
        optimizer = made["trainer"]["optimizer"]
        return optimizer["lr"], optimizer["weight_decay"], made["data"]["batch_size"]

    for name, rate in RATES.items():
        assert found(f"data={name}")[0] == rate
    assert found() == found("data=glyphs") == (2e-2, 0.01, 32)
    assert found("data=imagefolder", "pair=resnet34_resnet18") == (5e-4, 0.05, 64)
    assert found("data=imagefolder", "trainer.optimizer.lr=3e-3", "data.batch_size=16") == (3e-3, 0.05, 16)
    # Of a package that says nothing of it.
    assert found("data.protocol=null") == (1e-3, 0.01, 64)


def test_the_published_protocol_is_the_pairs_then_the_data_sets():
    def found(*overrides: str) -> tuple[float, int, int]:
        made = config.load(["task=classification", "preset=paper", *overrides])
        return made["trainer"]["optimizer"]["lr"], made["trainer"]["epochs"], made["data"]["batch_size"]

    assert found("data=cifar100", "pair=resnet56_resnet20") == (0.05, 240, 64)
    assert found("data=imagefolder", "pair=resnet34_resnet18") == (0.1, 100, 256)
    assert found("data=imagefolder", "pair=resnet32x4_resnet8x4") == (0.1, 90, 256)


def test_real_cifar100_in_batches(shared_data, tmp_path):
    options: dict[str, Any] = {"source": "cifar100", "root": str(shared_data / "cifar100"), "batch_size": 128}
    images = layouts.open_with(tmp_path, transforms={"crop": 4, "flip": True}, **options)
    assert images.sizes["train"] + images.sizes["val"] == 2000
    assert len(np.bincount(images.val.targets)) == len(np.bincount(images.train.targets)) == 100
    batch = next(iter(images.module(0).train_dataloader()))
    assert batch.inputs.shape == (128, 3, 32, 32)
    few = layouts.open_with(tmp_path, labels=500, unlabelled=1000, **options)
    assert set(np.bincount(few.train.targets[:500])) == {5}
    np.testing.assert_array_equal(few.val.rows, images.val.rows)


def of_glyphs(*overrides: str) -> dict[str, Any]:
    return config.load(["task=classification", "data=glyphs", *overrides])


def test_rendered_characters_are_the_default():
    """Whichever name asks for them, with the pair and the teacher that they choose."""
    assert config.load(["task=classification"]) == of_glyphs()
    assert of_glyphs()["pair"]["name"] == "resnet8_w24_w8"
    assert config.load(["task=classification", "data=digits"])["pair"]["name"] == "resnet8_w16_w4"


def test_the_teacher_of_rendered_characters_has_learned_from_more():
    for preset, labels, epochs in (("quick", 3760, 12), ("smoke", 1880, 2)):
        made = of_glyphs(f"preset={preset}")
        assert made["teacher"]["data"] == {**made["data"], "labels": labels}
        assert made["teacher"]["trainer"]["epochs"] == epochs
        assert made["teacher"]["trainer"]["optimizer"]["lr"] == 5e-3
    published = of_glyphs("preset=paper")
    assert (published["teacher"]["data"]["labels"], published["teacher"]["trainer"]) == (3760, {})
    equal = of_glyphs("teacher.data={labels: 940}")
    assert equal["teacher"]["data"] == equal["data"]
    for name in ("digits", "mnist1d", "cifar100"):
        assert config.load(["task=classification", f"data={name}"])["teacher"]["data"] == {}


def test_recipes_of_a_data_set():
    """What a part without labels and a pruned set are is the data set's; the teacher is that of every other method."""
    plain = of_glyphs()
    for method in ("ssld", "pruned"):
        assert of_glyphs(f"method={method}")["teacher"] == plain["teacher"]
    assert of_glyphs("method=ssld")["data"]["unlabelled"] == 1880
    pruned = of_glyphs("method=pruned")
    assert pruned["data"] == plain["data"]
    assert pruned["method"]["fraction"] == pruned["data"]["labels"] / pruned["teacher"]["data"]["labels"]
    digits = config.load(["task=classification", "data=digits", "method=pruned"])
    assert (digits["data"]["keep"]["fraction"], digits["method"]["fraction"]) == (0.25, 0.25)
    assert config.load(["task=classification", "data=digits", "method=ssld"])["data"]["unlabelled"] == "rest"


@pytest.mark.parametrize("method", ["kd", "ssld", "pruned"])
def test_rendered_characters_open_at_smoke(method, tmp_path_factory):
    """As student and teacher read them, with every recipe."""
    cache = tmp_path_factory.getbasetemp() / "glyphs-smoke"
    made = of_glyphs("preset=smoke", f"method={method}")
    for data in (made["data"], made["teacher"]["data"]):
        options = {key: value for key, value in data.items() if key not in ("name", "task", "protocol")}
        images = layouts.open_with(cache, **options)
        assert images.labelled == data["labels"]
        assert images.sizes["test"] == 470
        assert images.sizes["train"] == data["labels"] + (data["unlabelled"] or 0)


def test_a_student_that_learns_slowly_has_a_schedule_of_its_own():
    """The pair says it; the teacher's is the data set's."""
    made = of_glyphs("pair=cnn_vit_glyphs")
    assert made["trainer"]["epochs"] > of_glyphs()["trainer"]["epochs"]
    assert made["trainer"]["optimizer"]["lr"] < of_glyphs()["trainer"]["optimizer"]["lr"]
    assert made["teacher"] == of_glyphs()["teacher"]
