from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.base.weights import load_weights
from kdbench.predict import main
from kdbench.records.record import find_records
from kdbench.runs.deployment import read_run
from tests.cli import ROOT, CliToy, CommandLine
from tests.toy import Net


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, torch.randn(3, 8, 8, generator=rng.generator(0)).numpy())
    return path


def test_a_recorded_student_predicts_and_draws(kdbench, image, tmp_path, capsys):
    kdbench("method=kd")
    (run,) = find_records(kdbench.results)
    capsys.readouterr()
    for place in (run, run / "run.json"):
        out = tmp_path / "shown.png"
        assert main([str(place), str(image), "--out", str(out)]) == 0
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert found["class"] in range(5)
        assert found["input"] == str(image)
        assert said.err == f"picture: {out}\n"
        assert Image.open(out).size == (8, 8)
        out.unlink()


def test_what_a_method_keeps_at_inference_predicts(kdbench, image, capsys):
    """The student's own head is not the one that was trained for use."""
    kdbench("method=toy_reuse")
    (run,) = find_records(kdbench.results)
    config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    task, plain = CliToy(config["data"], Store(kdbench.cache)), Net(4)
    batch = task.read(image)
    deployed = read_run(run).artifact(batch=batch).module
    load_weights(plain, run / "student.safetensors")
    kept = {name: tensor for name, tensor in load_file(run / "deployed.safetensors").items() if "model" not in name}
    assert {tuple(tensor.shape) for tensor in kept.values()} == {(8, 4), (8,), (5, 8), (5,)}
    plain.eval()
    hidden = torch.nn.functional.linear(plain.body(plain.stem(batch.inputs)).mean((2, 3)), *_two(kept, "1"))
    expected = torch.nn.functional.linear(hidden, *_two(kept, "2"))
    torch.testing.assert_close(deployed(batch.inputs), expected)
    capsys.readouterr()
    assert main([str(run), str(image), "--out", str(run.parent / "shown.png")]) == 0
    assert json.loads(capsys.readouterr().out) == {"input": str(image), "class": int(expected.argmax())}


def _two(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def test_a_teacher_trained_alone_predicts_too(kdbench, image, tmp_path, capsys):
    kdbench("method=none", "role=teacher")
    (run,) = find_records(kdbench.results)
    capsys.readouterr()
    assert main([str(run), str(image), "--out", str(tmp_path / "shown.png")]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"input", "class"}


def test_bad_input_is_one_line(kdbench, image, tmp_path, capsys):
    kdbench("method=kd")
    (run,) = find_records(kdbench.results)
    kdbench("method=kd", "data.fault=loss", "seed=1")
    (failed,) = (path for path in find_records(kdbench.results) if path != run)
    text = tmp_path / "image.txt"
    text.write_text("no image")
    empty = tmp_path / "empty"
    (empty / ".hidden").mkdir(parents=True)
    (empty / ".hidden" / "image.npy").touch()
    out = str(tmp_path / "shown.png")
    for arguments, line in (
        ((tmp_path, image, "--out", out), "no run record"),
        ((failed, image, "--out", out), "is a run that failed (ZeroDivisionError: a bug in two lines): it has no"),
        ((run, text, "--out", out), "not a .npy image"),
        ((run, tmp_path / "imag.npy", "--out", out), f"there is no 'imag.npy' in {tmp_path}: did you mean 'image.npy'"),
        ((run, tmp_path / "empt" / "a.npy", "--out", out), f"there is no 'empt' in {tmp_path}: did you mean 'empty'"),
        ((run.with_name("kd"), image), f"there is no 'kd' in {run.parent}: available: "),
        ((run, empty), f"{empty}: this folder holds no input of task toy"),
        ((run, image, "--out", str(tmp_path / "no" / "shown.png")), "shown.png"),
        ((run, image, "--out", str(tmp_path / "shown.xyz")), "shown.xyz"),
    ):
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 1
        said = capsys.readouterr()
        assert said.err.startswith("kdbench: error: ")
        assert said.err.count("\n") == 1
        assert line in said.err
        if "shown" not in line:  # what was predicted before is told
            assert said.out == ""
    assert not (tmp_path / "shown.png").exists()


def test_inputs_laid_out_otherwise_are_read_by_options_of_data(kdbench, image, tmp_path, capsys, monkeypatch):
    kdbench("method=none")
    (run,) = find_records(kdbench.results)
    read, seen = CliToy.read, []

    def noted(self, path):
        seen.append(self.options.fault)
        return read(self, path)

    monkeypatch.setattr(CliToy, "read", noted)
    words = [str(run), str(image), "--out", str(tmp_path / "a.png")]
    assert main(words) == 0
    assert main([*words, "--set", "data.fault=none"]) == 0
    assert seen == [None, "none"]
    capsys.readouterr()
    for option, line in (
        ("data.fautl=1", "data.fautl: unknown key: did you mean 'fault'"),
        ("seed=3", "--set seed=3: expected a key of data"),
        ("data.fault", "--set data.fault: expected a key of data"),
        ("data.fault=[", "--set data.fault=[: "),
    ):
        assert main([*words, "--set", option]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"kdbench: error: {line}")
        assert said.count("\n") == 1


def test_a_folder_and_files_are_one_call_and_one_page(kdbench, image, tmp_path, capsys, monkeypatch):
    kdbench("method=kd")
    (run,) = find_records(kdbench.results)
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.npy", "a.npy", "._a.npy", "notes.txt"):
        (folder / name).write_bytes(image.read_bytes())
    monkeypatch.setattr(CliToy, "suffixes", (".npy",))
    shown: list[str] = []

    def show(task, batch, model, name):
        shown.append(name)
        return Image.new("RGB", (800, 10), "black")

    monkeypatch.setattr(CliToy, "show", show)
    monkeypatch.setattr("kdbench.predict.SHOWN", 2)
    out = tmp_path / "page.png"
    capsys.readouterr()
    assert main([str(run), str(image), str(folder.parent), "--out", str(out)]) == 0
    said = capsys.readouterr()
    found = [json.loads(line)["input"] for line in said.out.splitlines()]
    assert found == [str(image), str(folder / "a.npy"), str(folder / "b.npy")]
    assert shown == [f"{tmp_path.name}/image.npy", "deep/a.npy"]
    assert said.err == f"picture: {out} (the first 2 of 3 inputs)\n"
    assert Image.open(out).size == (1500, 9)


def test_a_reader_that_has_gone_ends_it_quietly(kdbench, image, tmp_path):
    kdbench("method=none", "role=teacher")
    (run,) = find_records(kdbench.results)
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "kdbench.predict", str(run), str(image), "--out", str(tmp_path / "shown.png")],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert ended.returncode == -signal.SIGPIPE
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("change", ["edited", "damaged", "missing"])
def test_a_configuration_that_is_not_that_of_the_run_builds_nothing(kdbench, image, tmp_path, capsys, change):
    kdbench("method=none", "role=teacher")
    (run,) = find_records(kdbench.results)
    path = run / "config.yaml"
    content = path.read_text()
    path.unlink()
    if change != "missing":
        path.write_text("task: [" if change == "damaged" else content.replace("tests.toy.Net", "tests.toy.Other"))
    capsys.readouterr()
    assert main([str(run), str(image), "--out", str(tmp_path / "shown.png")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(
        f"kdbench: error: {path}: {'this is not the' if change == 'edited' else 'cannot be read'}"
    )
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_damaged_weights_are_one_line(kdbench, image, capsys):
    kdbench("method=kd")
    (run,) = find_records(kdbench.results)
    (run / "student.safetensors").write_bytes(b"cut")
    capsys.readouterr()
    assert main([str(run), str(image)]) == 1
    assert "it is damaged or was cut short" in capsys.readouterr().err
