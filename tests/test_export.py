from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.export import export, main
from kdbench.records.record import find_records
from kdbench.runs.deployment import read_run
from kdbench.task import ExportPlan
from tests.cli import CliToy, CommandLine


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("method", ["kd", "toy_reuse"])
def test_a_recorded_student_does_the_same_elsewhere(kdbench, method, tmp_path, capsys):
    """Also one that keeps a part of its teacher at inference; on batches of any size."""
    kdbench(f"method={method}")
    (run,) = find_records(kdbench.results)
    images = torch.randn(5, 3, 8, 8, generator=rng.generator(0))
    with torch.no_grad():
        expected = read_run(run).artifact().module(images)
    capsys.readouterr()

    assert main([str(run)]) == 0
    session = onnxruntime.InferenceSession(run / "student.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out.startswith(f"{run / 'student.onnx'}: 0.")

    out = tmp_path / "own.pt2"
    assert main([str(run), "--format", "pt2", "--out", str(out)]) == 0
    torch.testing.assert_close(torch.export.load(out).module()(images), expected)
    assert not [path for folder in (run, tmp_path) for path in folder.glob(".*")]


class Data(nn.Module):
    """Branches on a value, which no exported graph can."""

    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


class Fickle(nn.Module):
    """Answers otherwise each time, so that no file can do the same."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.rand_like(images)


@pytest.mark.parametrize(
    ("module", "says"), [(Data(), "the student cannot be exported: "), (Fickle(), "differ from the student's by")]
)
def test_what_cannot_be_exported_leaves_nothing(kdbench, module, says, monkeypatch, tmp_path, capsys):
    kdbench("method=kd")
    (run,) = find_records(kdbench.results)
    monkeypatch.setattr(CliToy, "export", lambda *_: ExportPlan(module, (torch.ones(1, 3),), ("images",)))
    folder = tmp_path / "own"
    folder.mkdir()
    for form in ("onnx", "pt2"):
        capsys.readouterr()
        assert main([str(run), "--format", form, "--out", str(folder / f"student.{form}")]) == 1
        said = capsys.readouterr().err
        assert said.startswith("kdbench: error: ")
        assert says in said
        assert said.count("\n") == 1
    assert not list(folder.iterdir())


def test_bad_input_is_one_line(kdbench, tmp_path, capsys):
    kdbench("method=kd")
    (run,) = find_records(kdbench.results)
    for arguments, says in (
        ([str(tmp_path)], "no run record"),
        ([str(run), "--out", str(tmp_path / "no" / "student.onnx")], "there is no folder"),
        ([str(run), "--format", "pt2", "--out", str(tmp_path / "no" / "student.pt2")], "there is no folder"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("kdbench: error: ")
        assert says in said
        assert said.count("\n") == 1
    assert not list(run.glob("*.onnx"))


def test_a_teacher_trained_alone_is_exported_by_its_name(kdbench):
    kdbench("method=none", "role=teacher")
    (run,) = find_records(kdbench.results)
    path, gap = export(read_run(run))
    assert path == run / "teacher.onnx"
    assert gap < 1e-5
