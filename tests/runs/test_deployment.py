"""What a run learned is used by its record alone: the data may be renamed, changed or gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

from kdbench import predict
from kdbench.base.digest import digest, without, without_nulls
from kdbench.base.store import Store
from kdbench.export import export
from kdbench.records.record import FREE, VOLATILE, find_records
from kdbench.runs.deployment import read_run
from tasks.classification.task import Classification
from tests.alone import alone
from tests.cli import ROOT

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with an image folder ``data`` and the results of SimKD, which keeps more than the student, on it."""
    folder = tmp_path_factory.mktemp("own")
    g = np.random.default_rng(0)
    for part, n in (("train", 10), ("val", 3)):
        for k, name in enumerate(CLASSES):
            (folder / "data" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = g.integers(0, 120, (20, 24, 3))
                pixels[..., k] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / part / name / f"{i}.png")
    words = f"""task=classification data=imagefolder data.root={folder / "data"} data.size=16 data.workers=0
        data.interpolation=bicubic data.crop_pct=0.8 data.background=white data.mean=[0.4,0.4,0.4]
        preset=smoke trainer.epochs=1 method=simkd pair=resnet8_w16_w4
        results={folder / "results"} cache={folder / "cache"}"""
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *words.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def own(trained, tmp_path) -> Iterator[Path]:
    """A copy of the run's record; the data lie where the run found them, and are put back afterwards."""
    (run,) = find_records(trained / "results")
    shutil.copytree(trained / "data", tmp_path / "kept")
    shutil.copytree(run, tmp_path / "record")
    yield tmp_path / "record"
    shutil.rmtree(trained / "data", ignore_errors=True)
    shutil.copytree(tmp_path / "kept", trained / "data")


def test_a_record_says_what_its_model_needs(own):
    data = json.loads((own / "run.json").read_text())["dataset"]
    assert data["classes"] == [*CLASSES]
    assert data["inputs"] == {
        "size": [16, 16],
        "mean": [0.4, 0.4, 0.4],
        "std": [0.229, 0.224, 0.225],
        "central": 0.875,
        "background": "white",
        "range": None,
        "crop": 0.8,
        "side": None,
        "interpolation": "bicubic",
    }


def test_a_renamed_folder_renames_no_prediction(trained, own, capsys):
    image = trained / "data" / "val" / "bee" / "0.png"
    out = ["--out", str(own / "shown.png")]
    assert predict.main([str(own), str(image), *out]) == 0
    before = capsys.readouterr()
    assert before.err == f"picture: {own / 'shown.png'}\n"
    for part in ("train", "val"):
        (trained / "data" / part / "bee").rename(trained / "data" / part / "wasp")
    image = trained / "data" / "val" / "wasp" / "0.png"
    assert predict.main([str(own), str(image), *out]) == 0
    after = capsys.readouterr()
    assert json.loads(after.out)["classes"] == json.loads(before.out)["classes"]
    *_, line = after.err.splitlines()
    assert line.startswith(f"kdbench: data.root={trained / 'data'} is not what it was: digest ")
    assert line.endswith("classes are the record's")


def test_without_its_data_a_model_does_the_same(trained, own, tmp_path, monkeypatch):
    """And nothing opens data or builds loaders; the model is the one that was scored."""
    image = tmp_path / "kept" / "val" / "cat" / "1.png"
    before = read_run(own)
    inputs = before.task.read(image).inputs
    with torch.no_grad():
        expected = before.artifact().module(inputs)
    shutil.rmtree(trained / "data")

    def refuse(*_):
        raise AssertionError("data were asked for")

    for name in ("images", "data"):
        monkeypatch.setattr(Classification, name, property(refuse))
    run = read_run(own)
    assert run.changed() is None
    (found,) = predict.predict(run, [image], tmp_path / "shown.png")
    assert {row["class"] for row in found["classes"]} == {*CLASSES}
    sure = expected.softmax(1)[0].sort(descending=True).values
    assert [row["probability"] for row in found["classes"]] == pytest.approx(sure.tolist(), abs=1e-4)
    assert Image.open(tmp_path / "shown.png").width > 300
    torch.testing.assert_close(run.artifact().module(inputs), expected)
    assert export(run, out=tmp_path / "own.onnx")[1] < 1e-3


def test_predictions_are_those_of_the_evaluation(trained, own):
    """A test image from its file is read as evaluation reads it."""
    found = read_run(own)
    evaluated = Classification(found.config["data"], Store(trained / "cache"))
    tests = next(iter(evaluated.data(0).test_dataloader())).inputs
    paths = [trained / "data" / "val" / name / f"{i}.png" for name in CLASSES for i in range(3)]
    assert torch.equal(torch.cat([found.task.read(path).inputs for path in paths]), tests)


def test_an_exported_model_comes_with_all_that_its_use_takes(trained, own, tmp_path):
    """Images of any kind are read as in evaluation, where kdbench is not."""
    export_to = tmp_path / "out" / "bees.onnx"
    export_to.parent.mkdir()
    run = read_run(own)
    export(run, out=export_to)
    session = onnxruntime.InferenceSession(export_to, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["images"]
    assert [node.name for node in session.get_outputs()] == ["logits"]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["kdbench"])
    assert facts["classes"] == [*CLASSES]
    student = run.record.scores["student"]
    assert run.record.dataset is not None
    assert student is not None
    assert facts["inputs"] == run.record.dataset.inputs
    assert facts["run_id"] == run.record.run_id
    assert facts["metric"] == {
        "name": "top1",
        "higher_is_better": True,
        "unit": "%",
        "test": student.test["top1"],
    }

    g = np.random.default_rng(1)
    colours = g.integers(0, 256, (31, 40, 4)).astype(np.uint8)
    odd = {
        "wide.png": Image.fromarray(colours[..., :3]),
        "clear.png": Image.fromarray(colours),
        "deep.png": Image.fromarray(g.integers(0, 65536, (40, 31)).astype(np.uint16)),
        "photo.jpg": Image.fromarray(colours[..., :3]),
    }
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image in odd.items():
        image.save(tmp_path / "out" / name, exif=turned if name == "photo.jpg" else None)
    images = [trained / "data" / "val" / "ant" / "0.png", *(tmp_path / "out" / name for name in odd)]
    expected = [*predict.predict(run, images)]
    found = alone(export_to.with_name("run_bees.py"), *images)
    assert [row["input"] for row in found] == [row["input"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert [row["class"] for row in one["classes"]] == [row["class"] for row in other["classes"]]
        sure = [[row["probability"] for row in rows["classes"]] for rows in (one, other)]
        assert sure[0] == pytest.approx(sure[1], abs=2e-4)
    assert len({str(row["classes"]) for row in found}) == len(found)


def test_a_record_of_version_1_opens_its_data(trained, own, tmp_path, capsys):
    path = own / "run.json"
    old = json.loads(path.read_text()) | {"schema_version": 1}
    del old["dataset"]["classes"], old["dataset"]["inputs"]
    old["content_hash"] = digest(without(without_nulls(old, FREE), VOLATILE), 32)
    path.write_text(json.dumps(old))
    image = tmp_path / "kept" / "val" / "cat" / "1.png"
    for part in ("train", "val"):
        (trained / "data" / part / "cat").rename(trained / "data" / part / "dog")
    assert predict.main([str(own), str(image), "--out", str(own / "shown.png")]) == 0
    said = capsys.readouterr()
    assert {row["class"] for row in json.loads(said.out)["classes"]} == {"ant", "bee", "dog"}
    assert said.err.endswith("classes are those of today, as its record is of schema version 1\n")
    shutil.rmtree(trained / "data")
    assert predict.main([str(own), str(image)]) == 1
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classification", "pointcloud"])
def test_keys_of_earlier_records_are_read_under_their_names_of_today(task):
    # Records of one schema version stand with either name: which comes first is the file system's.
    files = sorted((ROOT / "leaderboard" / "records" / task).glob("*/*/config.yaml"))
    configs = ((file.parent, yaml.safe_load(file.read_text())["data"]) for file in files)
    run, named = next((run, data["augment"]) for run, data in configs if "augment" in data)
    read = read_run(run)
    assert named
    assert read.config["data"]["transforms"] == named
    assert "augment" not in read.config["data"]
