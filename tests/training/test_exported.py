"""An ONNX file in the engines that are installed: times, and classes beside those of a network."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.quant.pt2e import Converted, prepared, roundings
from kdbench.quant.traced import Trained, replaced, trace
from kdbench.task import ExportPlan
from kdbench.training.exported import agreement, engines, measure_onnx

IMAGES = torch.randn(40, 3, 8, 8, generator=rng.generator(0, "exported"))
ENGINES = {"onnxruntime"} | ({"openvino"} if importlib.util.find_spec("openvino") else set())


def network() -> nn.Sequential:
    with rng.scope(0, "exported"):
        layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
        return nn.Sequential(*layers).eval()


def plan(model: nn.Module) -> ExportPlan:
    return ExportPlan(model, (IMAGES[:1],), ("images",), ("logits",), {"images": {0: "batch"}})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return path, measure_onnx(plan(network()), path, repeats=5, warmup=1)


def test_every_engine_is_timed(measured):
    path, found = measured
    assert found.times.keys() == ENGINES
    assert all(0 < median <= p90 for median, p90 in found.times.values())
    assert found.bytes == path.stat().st_size > found.packed_bytes > 4 * (8 * 3 * 9 + 8 * 8 * 9 + 128 * 5)
    assert found.bits is None


def test_agreement_is_the_share_of_samples_with_the_same_class(measured):
    path, _ = measured
    own = network()
    assert agreement(path, plan(own), plan(own), [IMAGES[:25], IMAGES[25:]]) == dict.fromkeys(ENGINES, 100.0)

    class Other(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return own(images) * torch.tensor([1.0, -1, 1, -1, 1])

    other = Other()
    same = float((own(IMAGES).argmax(1) == other(IMAGES).argmax(1)).float().mean())
    assert 0.1 < same < 0.9
    found = agreement(path, plan(own), plan(other), [IMAGES])
    assert found == {name: pytest.approx(100 * same) for name in ENGINES}
    few = agreement(path, plan(own), plan(other), [IMAGES[:8], IMAGES[8:]], most=8)
    same = float((own(IMAGES[:8]).argmax(1) == other(IMAGES[:8]).argmax(1)).float().mean())
    assert few == {name: pytest.approx(100 * same) for name in ENGINES}


@pytest.mark.parametrize("batches", [[], [IMAGES[..., :4]], [{"points": IMAGES}], [(IMAGES, IMAGES)]])
def test_inputs_that_are_not_those_of_the_example_are_not_compared(measured, batches):
    own = plan(network())
    assert agreement(measured[0], own, own, batches) == {}
    assert agreement(measured[0], replace(own, example=(IMAGES[:2],)), own, [IMAGES]) == {}


def test_openvino_runs_a_converted_network_as_onnx_runtime_does(tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    own = network()
    graph, calls = trace(own, (IMAGES,), [[0]], [])
    trained = Trained(own, prepared(graph)[0], calls).eval()
    for rounding in roundings(trained):
        rounding.training = True
    with torch.no_grad():
        trained(IMAGES)
    converted = plan(replaced(trained.eval(), Converted).eval())
    found = measure_onnx(converted, tmp_path / "model.onnx", repeats=5, warmup=1)
    assert found.bits == 8
    answers = {name: run({"images": IMAGES[:1].numpy()}) for name, run in engines(tmp_path / "model.onnx").items()}
    largest = np.abs(answers["onnxruntime"]).max()
    assert np.abs(answers["openvino"] - answers["onnxruntime"]).max() < 0.1 * largest
    agreed = agreement(tmp_path / "model.onnx", converted, converted, [IMAGES])
    assert min(agreed.values()) >= 95
