"""What can be tapped of a network by its name, and that methods run with it."""

from __future__ import annotations

import pytest
import torch

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import resolve
from kdbench.runs.trainings import Trainings
from kdbench.training.distiller import Distiller
from kdbench.training.fit import Training
from tasks.classification.networks import aligned, side
from tasks.classification.task import Classification

GRIDS = ["stage1", "stage2", "stage3", "stage4", "last", "pooled"]


@pytest.mark.parametrize(
    ("name", "taps", "deepest"),
    [
        ("test_resnet", GRIDS, "layer4"),
        ("mobilenetv3_small_050", [*GRIDS[:4], "pooled"], "blocks.5"),  # a layer stands between map and classifier
        ("test_vit", GRIDS[:4] + ["pooled"], "blocks.5"),
        ("test_convnext", [*GRIDS[:4], "pooled"], "stages.3"),
        ("cifar_resnet8", ["stage1", "stage2", "stage3", "last", "pooled"], "layer3"),
        ("cifar_wrn16_1", ["stage1", "stage2", "stage3", "pooled"], "layer3"),
    ],
)
def test_stages_are_what_the_network_says(name, taps, deepest):
    state = torch.get_rng_state()
    made = side(f"timm/{name}", {})
    assert torch.equal(torch.get_rng_state(), state)
    assert list(made["taps"]) == taps
    stages = [tap for tap in taps if tap.startswith("stage")]
    assert made["taps"][stages[-1]] == deepest
    assert made["kinds"] == (dict.fromkeys(stages, "tokens") if name == "test_vit" else {})
    assert made["taps"]["pooled"] == made["parts"]["classifier"] + ":input"


def test_stages_of_networks_of_unlike_depth_meet_at_the_deepest():
    made = {name: side(network, {}) for name, network in (("student", "cifar_resnet8"), ("teacher", "test_resnet"))}
    both = aligned(made, None)
    assert [both[name]["taps"][f"stage{n}"] for name in both for n in (1, 3)] == [
        "layer1",
        "layer3",
        "layer2",
        "layer4",
    ]
    alone = aligned({"teacher": made["teacher"]}, {"taps": {"stage1": "a", "stage2": "b", "stage2.pre": "b:input"}})
    assert [tap for tap in alone["teacher"]["taps"] if tap.startswith("stage")] == ["stage1", "stage2"]
    assert alone["teacher"]["taps"]["stage2"] == "layer4"
    assert "stage4" in aligned({"teacher": made["teacher"]}, {"taps": None})["teacher"]["taps"]


@pytest.mark.parametrize(
    ("method", "student"),
    [
        ("fitnet", "mobilenetv3_small_050"),
        ("at", "test_efficientnet"),
        ("reviewkd", "cifar_resnet8"),
        ("crd", "cifar_resnet8"),
    ],
)
def test_methods_on_features_run_between_networks_named_by_the_user(tmp_path, method, student):
    overrides = [
        "task=classification",
        "data=digits",
        "preset=smoke",
        f"method={method}",
        f"cache={tmp_path}",
        "data.batch_size=4",
    ]
    found = config.load([*overrides, f"student=timm/{student}", "teacher=timm/test_resnet"])
    run = resolve(found, Store(tmp_path))
    training = Training(Trainings(run).student_recipe(), run.task, untrained=True)
    distiller: Distiller = training.distiller()
    assert len(distiller.rehearse(training.first_batch())) > 1


def test_what_nobody_can_know_of_a_network_is_refused_by_name(tmp_path):
    from kdbench.errors import KDBenchError
    from kdbench.methods.ofd import OFD

    found = config.load(["task=classification", "student=timm/test_resnet", "teacher=timm/test_resnet"])
    with pytest.raises(KDBenchError, match="pair test_resnet_test_resnet does not give"):
        bind(OFD, Classification, found["pair"])
