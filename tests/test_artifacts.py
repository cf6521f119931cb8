"""What a training leaves, from the plugin that names it to the record, predictions and exports."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from kdbench import export, predict
from kdbench.errors import KDBenchError
from kdbench.records.record import find_records, read_record
from kdbench.runs.deployment import read_run
from kdbench.task import ExportPlan, scalars
from kdbench.training.exported import open_onnx
from tests.cli import CliToy, CommandLine
from tests.toy import Data, Toy


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def test_a_converted_student_is_scored_measured_and_saved(kdbench, tmp_path, capsys):
    """Its twin is converted too; both run on the processor, with 8-bit weights, and are measured in ONNX Runtime."""
    ran = kdbench("method=kd", "quant=toy_converted")
    assert ran.code == 0
    (folder,) = find_records(kdbench.results)
    record = read_record(folder)
    assert list(record.scores) == ["teacher", "scratch", "student", "scratch_converted", "converted"]
    assert set(record.scores["converted"].test) == {"accuracy"}
    model, student = record.models["converted"], record.models["student"]
    assert model.engine == "onnxruntime"
    assert 0 < (model.latency_ms or 0) <= (model.latency_p90_ms or 0)
    assert (student.latency_ms, student.engine) == (None, None)
    assert "1 of 3 layers" in record.flags
    (apart,) = (flag for flag in record.flags if flag.startswith("apart:converted is "))  # as it is always farther
    assert f"warning: {apart.removeprefix('apart:')}" in " ".join(ran.out.split())
    stored = load_file(folder / "converted.safetensors")
    assert stored["head.weight"].dtype == torch.int8
    plain = load_file(folder / "student.safetensors")["head.weight"]
    torch.testing.assert_close(
        stored["head.weight"] * stored["head.scale"], plain, rtol=0, atol=float(plain.abs().max()) / 127
    )

    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32))
    run = read_run(folder)
    converted = run.artifact("converted").module
    batch = run.task.read(image)
    capsys.readouterr()
    assert export.main([str(folder), "--artifact", "converted"]) == 0
    file = (folder / "converted.onnx").stat().st_size
    assert model.bytes < file  # which says how it is used
    assert file - 4000 < model.bytes
    assert 0 < (model.packed_bytes or 0) < model.bytes
    session = open_onnx(folder / "converted.onnx")
    (found,) = session.run(None, {"images": batch.inputs.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, converted(batch.inputs), rtol=1e-4, atol=1e-5)
    assert next(predict.predict(run, [image], artifact="converted"))["class"] == int(found.argmax())


@pytest.mark.parametrize("module", [export, predict])
def test_an_artifact_that_a_run_did_not_leave_is_one_line(kdbench, module, tmp_path, capsys):
    kdbench("method=kd", "quant=toy_converted")
    (folder,) = find_records(kdbench.results)
    np.save(tmp_path / "image.npy", np.zeros((3, 8, 8), np.float32))
    inputs = [str(tmp_path / "image.npy")] if module is predict else []
    capsys.readouterr()
    assert module.main([str(folder), *inputs, "--artifact", "convertd"]) == 1
    said = capsys.readouterr().err
    assert said == f"kdbench: error: {folder} has no artifact 'convertd': did you mean 'converted'?\n"


def test_a_privileged_teacher_is_scored_as_the_student_reads_and_with_what_it_alone_reads(kdbench):
    kdbench("method=toy_privileged", "teacher.trainer.epochs=6")
    (record,) = kdbench.records()
    assert list(record.scores) == ["teacher", "scratch", "student", "teacher_privileged"]
    plain, told = (record.scores[name].test["accuracy"] or 0.0 for name in ("teacher", "teacher_privileged"))
    assert told != plain


def test_a_moving_average_is_deployed_under_the_names_of_the_student(kdbench):
    kdbench("method=toy_averaged")
    (folder,) = find_records(kdbench.results)
    record = read_record(folder)
    average, last = (load_file(folder / f"{name}.safetensors") for name in ("student", "last"))
    assert average.keys() == last.keys()
    assert not torch.equal(average["head.weight"], last["head.weight"])
    assert record.scores.keys() >= {"student", "last"}
    held = read_run(folder).artifact().module.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in average.items())


def test_two_artifacts_of_one_name_end_the_run_before_it_trains(kdbench):
    error = kdbench("method=toy_clashing", "quant=toy_converted").error
    assert error == "Converted leaves an artifact 'converted', a name that another plugin gives"
    assert not (kdbench.cache / "model").exists()


class Several(Metric):
    """Gives what it is told to."""

    def __init__(self, given: object) -> None:
        super().__init__()
        self.given = given

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> object:
        return self.given


def test_metrics_in_dictionaries_are_joined_names():
    classes = {"road": torch.tensor(0.5), "sign": torch.tensor(float("nan")), "small": {"sign": torch.tensor([0.25])}}
    metrics = MetricCollection({"a": Several({"iou": classes}), "b": Several(torch.tensor(0.75))})
    metrics.update(torch.zeros(1), torch.zeros(1))
    found = scalars(metrics)
    assert found == {"iou.road": 0.5, "iou.small.sign": 0.25, "b": 0.75}


def test_a_metric_of_several_numbers_without_names_ends_the_run_before_it_trains(kdbench, monkeypatch):
    monkeypatch.setattr(CliToy, "metrics", lambda *_: MetricCollection({"iou": Several(torch.rand(19))}))
    error = kdbench("method=kd").error
    assert error.startswith("metric 'iou' is a Tensor of the shape (19,), expected a number, or a dictionary")
    assert not (kdbench.cache / "model").exists()


def test_metrics_of_the_test_set_alone_are_tried_before_the_run_trains_and_read_none_of_it(kdbench, monkeypatch):
    def metrics(task, split):
        found = Toy.metrics(task, split)
        if split == "test":
            found.add_metrics({"iou": Several(torch.rand(19))})
        return found

    monkeypatch.setattr(CliToy, "metrics", metrics)
    monkeypatch.setattr(Data, "test_dataloader", lambda self: pytest.fail("the test set was read"))
    error = kdbench("method=kd").error
    assert error.startswith("metric 'iou' is a Tensor of the shape (19,), expected a number, or a dictionary")
    assert not (kdbench.cache / "model").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros(3), r"metric 'a' is a ndarray of the shape \(3,\), expected"),
        ([0.5, 0.25], "metric 'a' is a list, expected"),
        ({"road": None}, "metric 'road' is a NoneType, expected"),
        ({"x": {"y": 0.1}, "x.y": 0.9}, "two metrics are called 'x.y'"),
    ],
)
def test_what_is_no_number_is_one_line(given, says):
    metrics = MetricCollection({"a": Several(given)})
    metrics.update(torch.zeros(1), torch.zeros(1))
    with pytest.raises(KDBenchError, match=says):
        scalars(metrics)


class Pairs(nn.Module):
    """Of points and of boxes there are any number; each point has three coordinates."""

    def forward(self, points: Tensor, boxes: Tensor) -> Tensor:
        return boxes[:, :3] @ points


def test_a_plan_says_which_axes_are_of_any_length(kdbench, monkeypatch, capsys):
    kdbench("method=kd")
    (folder,) = find_records(kdbench.results)
    dynamic = {"points": {1: "points"}, "boxes": {0: "boxes"}}
    plan = ExportPlan(Pairs(), (torch.rand(3, 1), torch.rand(4, 7)), ("points", "boxes"), dynamic=dynamic)
    monkeypatch.setattr(CliToy, "export", lambda *_: plan)
    capsys.readouterr()
    assert export.main([str(folder)]) == 0
    session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
    assert [value.shape for value in session.get_inputs()] == [[3, "points"], ["boxes", 7]]
    points, boxes = torch.rand(3, 11), torch.rand(5, 7)
    (found,) = session.run(None, {"points": points.numpy(), "boxes": boxes.numpy()})
    np.testing.assert_allclose(found, Pairs()(points, boxes), rtol=1e-5)
