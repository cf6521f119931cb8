"""Networks that a user names or brings: what the pair says of its own goes, what the task says of these comes."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.configuration import config
from kdbench.configuration.network import named_taps
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError

TEACHER = {"_target_": "tasks.classification.models.create", "model_name": "cifar_resnet8", "width": 16}


def pair(*overrides: str, method: str = "fitnet") -> dict[str, Any]:
    found: dict[str, Any] = config.load(["task=classification", "data=digits", f"method={method}", *overrides])["pair"]
    return found


@pytest.mark.parametrize(
    "override",
    ["student=timm/resnet18", "student.model_name=resnet18", "pair.student.architecture.model_name=resnet18"],
)
def test_a_named_network_keeps_nothing_that_the_pair_says_of_its_own(override):
    found = pair(override)
    assert found["student"]["architecture"] == {"_target_": TEACHER["_target_"], "model_name": "resnet18"}
    assert found["student"]["taps"]["stage3"] == "layer4"
    assert found["teacher"]["architecture"] == TEACHER
    assert found["teacher"]["taps"]["stage3"] == "layer3[-1].act2"
    assert found["name"] == "cifar_resnet8_resnet18"
    assert "published" not in found


def test_a_tap_with_a_star_is_one_of_each_layer():
    taps = {"layer0": "embedding", "layer*": "blocks[*]", "heads*": "blocks[*].attention"}
    expected = {"layer0": "embedding", "layer1": "blocks[0]", "layer2": "blocks[1]"}
    expected |= {"heads1": "blocks[0].attention", "heads2": "blocks[1].attention"}
    for option in ("layers", "depth"):
        found = named_taps({"taps": taps, "architecture": {option: 2}})
        assert list(found.items()) == list(expected.items())
        assert named_taps({"taps": found, "architecture": {}}) == found
    assert named_taps({"taps": taps, "architecture": {"layers": 0}}) == {"layer0": "embedding"}
    assert named_taps({"taps": None}) == {}
    with pytest.raises(KDBenchError, match=r"taps.layer\*=blocks\[\*\]: a star is each layer.*\(layers or depth\)"):
        named_taps({"taps": taps, "architecture": {"width": 3}})


def test_a_run_reads_as_many_layers_as_the_user_gives_it():
    loaded = config.load(["task=text", "data=topics", "method=patient_kd", "student.layers=3"])
    assert loaded["pair"]["student"]["taps"]["layer*"] == "blocks[*]"
    resolved = resolve(loaded)
    assert [*resolved.config["pair"]["student"]["taps"]][-4:] == ["layer3", "heads1", "heads2", "heads3"]
    assert "layer3" not in resolved.config["pair"]["teacher"]["taps"]
    assert resolve(resolved.config).config == resolved.config


@pytest.mark.parametrize("override", ["teacher=timm/resnet18", "teacher.model_name=resnet18"])
def test_a_teacher_is_named_as_a_student_is(override):
    loaded = config.load(
        ["task=classification", "data=digits", override, "teacher.block_args={attn_layer: se}", "student.width=8"]
    )
    found = loaded["pair"]
    assert found["teacher"]["architecture"]["model_name"] == "resnet18"
    assert found["teacher"]["architecture"]["block_args"] == {"attn_layer": "se"}
    assert found["student"]["architecture"]["width"] == 8
    assert loaded["teacher"] == {
        "seed": 0,
        "init_from": None,
        "answers": None,
        "replay": None,
        "replay_limit": 2.0,
        "replay_dtype": "float32",
        "corpus": {},
        "expect": None,
        "tolerance": 1.0,
        "trainer": {},
        "data": {},
        "augment": {"name": "none"},
    }
    assert loaded["student"] == {"init_from": None, "trainer": {}}


@pytest.mark.parametrize("key", ["student._target_", "pair.student.architecture._target_"])
def test_an_own_class_keeps_no_taps_of_the_pair_but_those_of_the_user(key):
    given = (f"{key}=flatnet.FlatNet", "student.width=8")
    found = pair(*given, method="kd")
    assert found["student"]["architecture"] == {"_target_": "flatnet.FlatNet", "width": 8}
    assert not found["student"]["taps"]
    assert found["name"] == "cifar_resnet8_FlatNet"
    assert pair(*given, "pair.student.taps={stage2: conv}")["student"]["taps"] == {"stage2": "conv"}
    assert pair(*given, "pair.student.taps.stage2=conv")["student"]["taps"] == {"stage2": "conv"}


def test_published_values_are_those_of_the_pairs_own_networks():
    assert config.load(["task=classification", "method=fitnet"])["method"]["bind"] == {"feature": "stage2"}
    other = config.load(["task=classification", "method=fitnet", "student=timm/resnet18"])
    assert other["method"]["bind"] == {"feature": None}
    rates = [
        config.load(["task=classification", "pair=resnet32x4_shufflenetv1", "preset=paper", *given])["student"][
            "trainer"
        ]
        for given in ((), ("student=timm/resnet18",))
    ]
    assert [rate["optimizer"]["lr"] for rate in rates] == [0.01, 0.05]


def test_an_option_alone_keeps_the_pair():
    found = pair("student.width=8", "teacher.width=32")
    assert [found[side]["architecture"]["width"] for side in ("student", "teacher")] == [8, 32]
    assert found["name"] == "resnet8_w16_w4"
    assert "stage1.pre" in found["student"]["taps"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("student=timm/resnet81",), "model_name=resnet81: there is no such model: did you mean 'resnet18'"),
        (("teacher.expct=60",), "teacher.expct: unknown key: did you mean 'expect'?"),
        (
            ("student._target_=a.B", "pair.student.taps={stage1: 1}"),
            "pair.student.taps.stage1=1: input should be a valid",
        ),
        (("pair.student.architecture=3",), "pair.student.architecture=3: input should be a valid"),
        (("student.init_form=x",), "student.init_form: unknown key: did you mean 'init_from'?"),
        (
            ("task=pointcloud", "data=pointcloud", "student=timm/resnet18"),
            "student=timm/resnet18: task pointcloud knows no networks by name",
        ),
    ],
)
def test_what_is_mistyped_is_one_line(overrides, line):
    with pytest.raises(KDBenchError) as error:
        pair(*overrides, method="kd")
    assert str(error.value).startswith(line)


def test_the_command_is_the_users():
    words = ["task=classification", "student=timm/resnet18", "teacher.model_name=vit_tiny", "student._target_=a.B"]
    expected = "python -m kdbench task=classification student=timm/resnet18 teacher=vit_tiny ++student._target_=a.B"
    assert config.command_line(config.opened(words)) == expected


def test_a_sweep_composes_what_a_run_does():
    """Hydra's sweeper keeps the last of several overrides of one key, at the place of the first."""
    words = ["task=classification", "student._target_=a.B", "pair.student.taps={stage2: conv}", "teacher=timm/resnet18"]
    opened = config.opened(words)
    keys = [override.partition("=")[0] for override in opened]
    assert len(set(keys)) == len(keys)
    found = config.check(config._composed(opened))["pair"]
    assert found["student"]["taps"] == {"stage2": "conv"}
    assert found["teacher"]["architecture"]["model_name"] == "resnet18"
    command = config.command_line(opened)
    assert "pair.student.taps={stage2:" in command
