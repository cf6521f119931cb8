"""The examples of a method, an augmentation and a quantisation: ``docs/examples/plugins``."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from kdbench.base import rng
from kdbench.needs import State
from kdbench.records.record import find_records
from kdbench.signals import EVERY, Context
from kdbench.task import Batch
from tests.cli import PLUGINS, ROOT, CommandLine, install
from tests.tiny import classification

CONTEXT = Context(State(1, 7, 0.5), 3, frozenset({EVERY}))


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """The package as its own pyproject.toml would install it."""
    project = tomllib.loads((PLUGINS / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["kdbench.conf"].items()
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.syspath_prepend(install(tmp_path / "own", *entry))


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> Any:
    command = CommandLine(tmp_path, monkeypatch, capsys, "classification")
    return lambda *words: (command(*classification(tmp_path), "trainer.threads=1", *words), command)


def test_a_run_composes_all_three(kdbench):
    ran, command = kdbench("method=angle", "augment=blend", "quant=kbit", "quant.bits=3", "trainer.accelerator=cpu")
    assert ran.code == 0, ran.err
    (record,) = command.records()
    assert (record.method, record.augment, record.quant) == ("angle", "blend", "kbit")
    assert record.terms["angle"].weight == 1.0
    assert record.terms["angle"].first > record.terms["angle"].last > 0
    assert record.scores.keys() >= {"teacher", "scratch", "student"}
    (folder,) = find_records(command.results)
    composed = OmegaConf.load(folder / "config.yaml")
    assert (composed.augment.alpha, composed.quant.bits) == (0.2, 3)
    assert record.cost.epochs == composed.trainer.epochs + 1  # a quarter of them, rounded up
    assert record.models["student"].bytes == (folder / "student.safetensors").stat().st_size
    weights = load_file(folder / "student.safetensors")
    assert not [name for name in weights if "parametrizations" in name]
    rounded = [w for name, w in weights.items() if name.endswith("weight") and w.dim() > 1]
    assert len(rounded) > 5
    for channel in (channel for weight in rounded for channel in weight):
        steps = channel / (channel.abs().max() / 3)  # 3 bits: -3 … 3
        assert torch.allclose(steps, steps.round(), atol=1e-5)


@pytest.mark.parametrize(("method", "capability"), [("dkd", "single_label"), ("crd", "sample_id")])
def test_a_mixture_has_no_true_class_and_no_id(kdbench, method, capability):
    ran, _ = kdbench(f"method={method}", "augment=blend")
    assert f"requires {capability}, which augment= takes from the batches" in ran.error


def test_the_guide_shows_what_the_files_hold():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("## A new augmentation") : text.index("## In a package of your own")]
    shown = re.findall(r"`(kdbench_plugins/\S+)`[^`]*```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    assert {name for name, _ in shown} == {
        "kdbench_plugins/blend.py",
        "kdbench_plugins/conf/augment/blend.yaml",
        "kdbench_plugins/kbit.py",
        "kdbench_plugins/conf/quant/kbit.yaml",
    }
    for name, code in shown:
        assert " ".join(code.split()) in " ".join((PLUGINS / name).read_text().split()), name


def test_options_are_checked(kdbench):
    assert "quant.bits: found 1" in kdbench("method=kd", "quant=kbit", "quant.bits=1")[0].error


def test_blend_mixes_inputs_and_labels_by_the_share_of_the_step():
    from kdbench_plugins.blend import Blend

    plugin = Blend(alpha=0.4)
    plugin.classes = 5
    batch = Batch(torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 3, 4, -1]), torch.arange(6))
    views = plugin.views({"student": {"main": batch}, "teacher": {"main": batch, "other": batch}}, CONTEXT)
    assert views["student"]["main"] is views["teacher"]["main"]  # which is asked once
    assert views["teacher"]["other"] is batch
    mixed = views["student"]["main"]
    assert mixed.supervised is not None
    stream = rng.generator(3, "blend", 7)
    order = torch.randperm(6, generator=stream)
    share = np.random.default_rng(stream.initial_seed()).beta(0.4, 0.4)
    for i, j in enumerate(order.tolist()):
        assert torch.allclose(mixed.inputs[i], share * batch.inputs[i] + (1 - share) * batch.inputs[j])
        assert bool(mixed.supervised[i]) == (5 not in (i, j))
        if mixed.supervised[i]:
            expected = torch.zeros(5)
            expected[batch.targets[i]] += share
            expected[batch.targets[j]] += 1 - share
            assert torch.allclose(mixed.targets[i], expected)
    again = plugin.views({"student": {"main": batch}}, CONTEXT)["student"]["main"]
    assert torch.equal(again.inputs, mixed.inputs)
    later = plugin.views({"student": {"main": batch}}, Context(State(1, 8, 0.5), 3))["student"]["main"]
    assert not torch.equal(later.inputs, mixed.inputs)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_of_its_values_and_passes_the_gradient(bits):
    from kdbench_plugins.kbit import Uniform

    weight = torch.randn(4, 3, 2, generator=rng.generator(0, "kbit")).double()
    weight[3] = 0
    weight.requires_grad_()
    rounded = Uniform(bits)(weight)
    levels = 2 ** (bits - 1) - 1
    for channel, found in zip(weight.detach(), rounded.detach(), strict=True):
        values = torch.linspace(-1, 1, 2 * levels + 1, dtype=torch.float64) * channel.abs().max()
        nearest = values[(channel.flatten()[:, None] - values).abs().argmin(1)].view_as(channel)
        assert torch.allclose(found, nearest)
    factor = torch.randn(4, 3, 2, generator=rng.generator(1, "kbit")).double()
    (factor * rounded).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


def test_the_deployed_student_is_another_one_than_that_which_trains():
    from kdbench_plugins.kbit import KBit, Uniform

    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    student(torch.zeros(1, 3, 4, 4))
    nn.utils.parametrize.register_parametrization(student[0], "weight", Uniform(2))
    deployed = KBit(bits=2).artifacts({"student": student})["student"].module
    inputs = torch.randn(2, 3, 4, 4)
    assert torch.equal(deployed(inputs), student(inputs))
    assert set(deployed.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert nn.utils.parametrize.is_parametrized(student[0], "weight")
