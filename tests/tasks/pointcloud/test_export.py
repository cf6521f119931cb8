from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from kdbench.base import rng
from kdbench.base.weights import save_weights
from kdbench.export import export
from kdbench.predict import predict
from kdbench.records.record import find_records
from kdbench.runs.deployment import RecordedRun, read_run
from kdbench.script import load_model
from kdbench.training.measure import count_macs
from tasks.pointcloud import script
from tasks.pointcloud.boxes import rotated_iou_bev, to_bev
from tasks.pointcloud.decode import decode
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.export import Boxes
from tests.alone import alone
from tests.cli import ROOT
from tests.tasks.pointcloud import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RecordedRun:
    """A detector that was trained for an epoch on the tiny set, with scores that differ as those of a longer one."""
    folder = tmp_path_factory.mktemp("lidar")
    root = tiny.write(folder / "kitti")
    words = f"""task=pointcloud data.root={root} preset=smoke role=teacher method=none pair=pointpillars_16x
        pair.teacher.architecture.width=0.125 pair.teacher.architecture.max_points=20 trainer.epochs=1
        task.score_threshold=0.0 data.train=null data.test=null results={folder / "results"} cache={folder / "cache"}"""
    own = [
        f"task.{name}=[{','.join(map(str, v))}]" for name, v in (("point_range", tiny.RANGE), ("pillar", tiny.PILLAR))
    ]
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *words.split(), *own],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (record,) = find_records(folder / "results")
    found = read_run(record)
    model = found.artifact().module
    batch = found.task.read(root / "training" / "velodyne" / "000001.bin")
    with torch.no_grad():
        logits = found.task.forward(model, batch.inputs).cls
        bias = model.get_parameter("head.cls.bias").mean()
        # Cells without a point are all alike: the best ones must be others.
        model.get_parameter("head.cls.weight").mul_(5 / (logits - bias).abs().max())
    save_weights(model, record / "teacher.safetensors")
    return found


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """Its ONNX file, the script beside it."""
    path, gap = export(run, out=tmp_path_factory.mktemp("out") / "cars.onnx")
    assert gap < 1e-3
    return path


def test_scans_become_boxes_without_kdbench(run, exported, tmp_path):
    """In a folder of KITTI's, with its image or without one, and alone."""
    root = Path(run.config["data"]["root"]) / "training"
    for folder in ("velodyne", "calib"):
        (tmp_path / folder).mkdir()
        for name in ("000001", "000002"):
            (source,) = (root / folder).glob(f"{name}.*")
            (tmp_path / folder / source.name).write_bytes(source.read_bytes())
    (tmp_path / "image_2").mkdir()
    Image.new("L", (900, 375)).save(tmp_path / "image_2" / "000002.png")
    bare = tmp_path / "bare.bin"
    bare.write_bytes((tmp_path / "velodyne" / "000001.bin").read_bytes())
    scans = [*sorted((tmp_path / "velodyne").iterdir()), bare]

    session, facts = load_model(exported)
    assert [node.name for node in session.get_inputs()] == ["points", "cells"]
    assert [node.name for node in session.get_outputs()] == ["boxes", "scores"]
    assert facts["classes"] == ["Pedestrian", "Cyclist", "Car"]
    read = [script.read_scan(scan, facts["inputs"]) for scan in scans]
    assert len({len(points) for points in read}) == 3
    for scan, points in zip(scans, read, strict=True):
        assert torch.equal(torch.from_numpy(points), run.task.read(scan).inputs["points"])

    expected, found = [*predict(run, scans)], alone(exported.with_name("run_cars.py"), *scans)
    for one, other in zip(found, expected, strict=True):
        assert one["input"] == other["input"]
        assert len(one["objects"]) == len(other["objects"]) > 10
        for mine, theirs in zip(one["objects"], other["objects"], strict=True):
            assert mine["class"] == theirs["class"]
            assert mine["score"] == pytest.approx(theirs["score"], abs=2e-4)
            assert mine["box"] == pytest.approx(theirs["box"], abs=2e-3)


def test_an_empty_scan_has_no_objects(exported):
    session, facts = load_model(exported)
    given = script.pillarise(np.empty((0, 4), np.float32), facts)
    boxes, scores = session.run(["boxes", "scores"], given)
    assert np.isfinite(boxes).all()
    assert scores.max() < 0.5


def test_detections_are_chosen_as_the_task_does(run):
    """Also among many that overlap."""
    g = rng.generator(0, "detect")
    anchors = run.task.anchors
    facts = {"score_threshold": 0.3, "top_k": 60, "nms": 0.1, "max_keep": 20}
    outputs = [
        torch.randn(1, len(anchors), 3, generator=g),
        0.3 * torch.randn(1, len(anchors), 7, generator=g),
        torch.randn(1, len(anchors), 2, generator=g),
    ]
    ahead = (anchors.boxes[:, :2] - torch.tensor([10.0, 0.0])).norm(dim=1) < 3
    outputs[0][0, ahead] += 4
    raw = PillarOutputs(*outputs, *[torch.zeros(0)] * 3)
    (expected,) = decode(raw, anchors, 0.3, 60, 0.1, 20)
    boxes, scores = (value.numpy() for value in Boxes(anchors)(*outputs))
    found = script.detect(boxes, scores, facts)
    assert len(found) == len(expected.boxes) > 5
    assert [label for label, _, _ in found] == expected.labels.tolist()
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, rtol=1e-5)
    np.testing.assert_allclose(np.stack([box for _, _, box in found]), expected.boxes, rtol=1e-4, atol=1e-4)


def test_the_overlap_of_the_script_is_that_of_the_task():
    g = rng.numpy(0, "overlap")
    boxes = np.column_stack([g.uniform(-2, 2, (60, 3)), g.uniform(0.5, 4, (60, 3)), g.uniform(-4, 4, 60)])
    a, b = boxes[:30], boxes[30:]
    expected = rotated_iou_bev(to_bev(torch.from_numpy(a)), to_bev(torch.from_numpy(b)), aligned=True)
    assert (expected > 0.05).sum() > 10
    np.testing.assert_allclose([script.overlap(*pair) for pair in zip(a, b, strict=True)], expected, atol=1e-9)


class Wrapped(nn.Module):
    """A detector that is no ``PointPillars`` to look at."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, points, batch, size):
        return self.inner(points, batch, size)


def test_another_detector_goes_from_points_to_boxes(run):
    model = run.artifact().module
    plan = run.task.export(Wrapped(model))
    assert plan.names == ("points",)
    points = plan.example[0]
    boxes, scores = plan.module(points)
    given = script.pillarise(points.numpy(), {**run.task.export(model).facts, "inputs": run.task.dataset().inputs})
    own = run.task.export(model).module(*(torch.from_numpy(value) for value in given.values()))
    torch.testing.assert_close((boxes, scores), own, rtol=1e-3, atol=1e-4)
    assert count_macs(run.task.measured(Wrapped(model))) > count_macs(run.task.measured(model))


def test_the_file_runs_in_plain_onnx_runtime(run, exported):
    """Any number of points."""
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    for count in (1, 7, 500):
        points = rng.numpy(0, count).normal(size=(count, 10)).astype(np.float32)
        boxes, scores = session.run(None, {"points": points, "cells": np.arange(count)})
        assert boxes.shape == (len(run.task.anchors), 7)
        assert scores.shape == (len(run.task.anchors), 3)


def test_other_data_are_told_from_those_of_the_run_by_reading_alone(run, monkeypatch):
    """No frame is cropped anew for it."""
    assert run.changed() is None
    labels = Path(run.config["data"]["root"]) / "training" / "label_2" / "000001.txt"
    before = labels.read_text()
    labels.write_text(before.replace("Car", "Van"))
    monkeypatch.setattr("tasks.pointcloud.task.prepare", None)
    said = run.changed()
    labels.write_text(before)
    assert said is not None
    assert "is not what it was: digest " in said
