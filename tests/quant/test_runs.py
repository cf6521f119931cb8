"""Whole runs under a quantisation for deployment, from the command line to the file that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdbench import export
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.quant.packing import unpack
from kdbench.records.record import find_records, read_record
from kdbench.runs.deployment import read_run
from tests.alone import alone
from tests.cli import CommandLine


@pytest.fixture
def digits(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys, "classification")


DIGITS = ("data=digits", "method=kd", "trainer.accelerator=cpu", "trainer.val_every=100")


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["qat_int8", "ptq_int8"])
def test_an_exported_student_of_integers_scores_elsewhere_as_the_record_says(digits, quant, tmp_path, capsys):
    assert digits(*DIGITS, f"quant={quant}", "trainer.epochs=6").code == 0
    (folder,) = find_records(digits.results)
    record = read_record(folder)
    names = ("teacher", "scratch", "student", "scratch_float", "scratch_converted", "float", "converted")
    assert tuple(record.scores) == names
    top1 = {name: scores.test["top1"] or 0.0 for name, scores in record.scores.items()}
    assert top1["student"] > 75
    assert abs(top1["converted"] - top1["student"]) <= 0.5
    assert "int8: 10 of 10 layers" in record.flags
    for name in ("float", "converted"):
        model = record.models[name]
        assert model.engine == "onnxruntime"
        assert 0 < (model.latency_ms or 0) <= (model.latency_p90_ms or 0)
    assert (record.models["converted"].bits, record.models["float"].bits) == (8, None)
    assert (record.models["converted"].agreement or 0) >= 99.5
    assert record.models["float"].agreement is None
    # A byte a weight, and four for each channel's scale and bias; the graph around it is counted apart.
    run = read_run(folder)
    plain = {n: t for n, t in load_file(folder / "student.safetensors").items()}
    weights = sum(t.numel() for t in plain.values() if t.dim() > 1)
    channels = sum(len(t) for t in plain.values() if t.dim() > 1)
    packed = record.models["converted"].packed_bytes or 0
    assert packed == pytest.approx(weights + channels * (4 + 4), rel=0.1)
    assert (record.models["float"].packed_bytes or 0) > 3 * packed

    capsys.readouterr()
    assert export.main([str(folder), "--artifact", "converted"]) == 0
    assert (folder / "converted.onnx").stat().st_size > packed
    files: list[Path] = []
    targets, classes = list[int](), list[int]()
    fake = run.artifact("student").module
    task: Any = resolve(config.load(digits.arguments(*DIGITS))).task
    for batch in task.data(0).test_dataloader():
        with torch.no_grad():
            classes += task.forward(fake, batch.inputs).logits.argmax(1).tolist()
        targets += batch.targets.tolist()
        pixels = task.preprocess.denormalise(batch.inputs).numpy()
        for image in pixels:
            files.append(tmp_path / f"{len(files):03}.png")
            Image.fromarray(image[0]).save(files[-1])
    found = [int(line["classes"][0]["class"]) for line in alone(folder / "run_converted.py", *files)]
    assert np.mean(np.array(found) == np.array(classes)) >= 0.995
    own = 100 * float(np.mean(np.array(found) == np.array(targets)))
    assert own == pytest.approx(top1["converted"], abs=0.5)


@pytest.mark.slow
def test_weights_of_four_bits_are_packed(digits, tmp_path):
    assert digits(*DIGITS, "quant=qat_int4_weight").code == 0
    (folder,) = find_records(digits.results)
    record = read_record(folder)
    assert list(record.scores) == ["teacher", "scratch", "student", "scratch_float", "float"]
    model = record.models["student"]
    assert (model.bits, model.latency_ms) == (4, None)
    assert model.packed_bytes == (folder / "packed.safetensors").stat().st_size
    assert "int4: 1 of 10 layers; in float 9 Conv2d (conv1, layer1.0.conv1, layer1.0.conv2, layer2.0.conv1, …)" in (
        record.flags
    )
    state, plain = unpack(folder / "packed.safetensors"), load_file(folder / "student.safetensors")
    assert state.keys() == plain.keys()
    assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in plain.items())
    assert len((plain["fc.weight"] / plain["fc.weight"].abs().amax(1, keepdim=True)).unique()) < 16 * len(
        plain["fc.weight"]
    )
