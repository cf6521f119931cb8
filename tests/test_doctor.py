from __future__ import annotations

import io

import pytest
from rich.console import Console
from torch import nn

from kdbench import doctor
from kdbench.errors import KDBenchError
from kdbench.task import Counts
from tests.cli import CliToy, CommandLine
from tests.toy import Net


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.fixture
def healthy(monkeypatch):
    monkeypatch.setattr(doctor, "environment", lambda: [("python", True, "3")])


def examined(kdbench, *arguments, steps=8):
    text = io.StringIO()
    well = doctor.run(kdbench.arguments(*arguments), Console(file=text, width=200), steps)
    return well, [" ".join(line.replace("│", " ").split()) for line in text.getvalue().splitlines()]


def test_environment_finds_what_is_here(monkeypatch):
    found = {name: (fine, text) for name, fine, text in doctor.environment()}
    assert found["python"][0]
    assert found["torch"][0]
    assert found["torch and torchvision match"] == (True, "torchvision's operators load")
    assert found["accelerator"][0]
    assert found["open3d"] == (True, doctor.version("open3d") or "not installed; not every run needs it")
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-extra",))
    monkeypatch.setattr(doctor, "LIBRARIES", {"libnone.so.9": "libnone9"})
    monkeypatch.setattr(doctor, "_torchvision", lambda: 1 / 0)
    found = {name: (fine, text) for name, fine, text in doctor.environment()}
    assert found["no-such-package"] == (False, "not installed: make setup")
    assert found["no-such-extra"] == (True, "not installed; not every run needs it")
    assert found["system libraries"] == (False, "apt-get install libnone9")
    assert found["torch and torchvision match"] == (False, "division by zero")


def test_a_run_is_examined_without_training_it(kdbench):
    well, lines = examined(kdbench, "method=fitnet")
    assert well
    assert "teacher: not trained yet: fresh weights stand in" in lines
    assert any(line.startswith("student body Grid") for line in lines)
    assert any(line.startswith("teacher logits Logits") for line in lines)
    assert "method reads: feature = body" in lines
    (hint,) = (line for line in lines if line.startswith("hint "))
    assert "student " in hint
    assert "method " in hint
    (task,) = (line for line in lines if line.startswith("task "))
    assert "method " not in task
    assert any(line.startswith("a step takes ") and "x as long in bf16: " in line for line in lines)
    assert lines[-1].startswith("overfitting one batch for 8 steps: loss ")
    assert not kdbench.results.exists()
    assert not kdbench.manifests()
    kdbench("method=fitnet")
    assert "teacher: trained, from the cache" in examined(kdbench, "method=fitnet")[1]


def test_a_student_alone_is_examined_too(kdbench):
    well, lines = examined(kdbench, "method=none")
    assert well
    assert any(line.startswith("task ") for line in lines)


class Strided(Net):
    """Its body is what oneDNN gets wrong."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.body = nn.Sequential(nn.Conv2d(width, width, 1, 2), nn.ReLU())


def test_layers_kept_from_a_fault_of_onednn_are_named(kdbench):
    own = ("pair.student.architecture._target_=tests.test_doctor.Strided", "pair.student.architecture.width=4")
    well, lines = examined(kdbench, "method=none", *own)
    assert well
    said = (
        "1x1 convolutions, 4 -> 4 channels, stride 2: their weight gradients run in the plain layout, because oneDNN's"
    )
    assert any(line.startswith(said) for line in lines)
    assert not any("oneDNN" in line for line in examined(kdbench, "method=none")[1])


def test_of_a_method_with_stages_the_first_is_examined(kdbench):
    """There the student learns from the labels alone, so what another term weighs does not count."""
    staged = ("method=toy_mixed", "method._target_=tests.plugins.Rounded")
    losses = [examined(kdbench, *staged, f"+method.weights.kd={weight}", steps=2)[1][-1] for weight in (1, 100)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", ["MeanTeacher", "Recalled"])
def test_what_is_empty_at_the_first_step_is_not_wrong(kdbench, method):
    """A moving average is the student itself there, and a memory holds nothing."""
    term = {"MeanTeacher": "ema", "Recalled": "recalled"}[method]
    own = ("method=toy_mixed", f"method._target_=tests.plugins.{method}", f"+method.weights.{term}=1")
    well, lines = examined(kdbench, *own)
    assert well
    (line,) = (line for line in lines if line.startswith(f"{term} 0 1 "))
    assert line.startswith(f"{term} 0 1 nothing at the first step, then student ")


def test_what_reaches_nothing_stays_wrong(kdbench, monkeypatch):
    monkeypatch.setattr("tests.plugins.Recalled.after_step", lambda *_: None)
    own = ("method=toy_mixed", "method._target_=tests.plugins.Recalled", "+method.weights.recalled=1")
    well, lines = examined(kdbench, *own)
    assert not well
    assert "recalled 0 1 nothing" in lines


def test_a_loss_that_does_not_go_down_is_not_well(kdbench, monkeypatch):
    monkeypatch.setattr("kdbench.training.diagnosis.overfit", lambda *_: (1.0, 1.0))
    assert not examined(kdbench, "method=kd")[0]


def test_exit_codes(kdbench, healthy, monkeypatch, capsys):
    assert doctor.main([]) == 0
    assert "all is well" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "run", lambda overrides, *_: overrides == ["method=kd"])
    assert doctor.main(["method=kd"]) == 0
    assert doctor.main(["method=at"]) == 1
    assert "something is wrong" in capsys.readouterr().out

    def refuse(*_):
        raise KDBenchError("method=kb: there is no such method")

    monkeypatch.setattr(doctor, "run", refuse)
    assert doctor.main(["method=kb"]) == 1
    assert capsys.readouterr().err == "kdbench: error: method=kb: there is no such method\n"
    monkeypatch.setattr(doctor, "environment", lambda: [("torch", False, "not installed: make setup")])
    assert doctor.main([]) == 1
    assert "not installed: make setup" in capsys.readouterr().out


def test_bad_input_is_one_line(kdbench, healthy, capsys):
    for arguments, line in (
        (["method=kb"], "method=kb: there is no such method"),
        (["method=fitnet", "pair.student.taps.body=boddy"], "did you mean 'body'"),
        (["method=kd", "--steps", "-1"], "--steps -1: expected 1 or more"),
    ):
        assert doctor.main(kdbench.arguments(*arguments)) == 1
        said = capsys.readouterr().err
        assert said.startswith("kdbench: error: ")
        assert said.count("\n") == 1
        assert line in said


def test_what_the_data_holds_is_shown_and_a_lack_is_the_finding(kdbench, healthy, monkeypatch, capsys):
    counts = {
        "train": Counts(64, {"cat": 60, "dog": 4}),
        "test": Counts(40, {"cat": 30, "dog": 10}, {"cat": 9, "dog": 0}),
    }
    monkeypatch.setattr(CliToy, "counts", lambda self: counts)
    well, lines = examined(kdbench, "method=kd")
    assert well
    assert {"samples 64 40", "cat 60 30 (9)", "dog 4 10 (0)"} <= set(lines)
    counts["train"] = Counts(64, {"cat": 0}, reason="its labels name bus (3)")
    assert doctor.main(kdbench.arguments("method=kd")) == 1
    captured = capsys.readouterr()
    assert "train holds nothing to learn from (64 samples, no cat): its labels name bus (3)" in captured.err
    assert "samples" in captured.out


def test_the_probe_compares_students_and_freezes_one(kdbench):
    def probed() -> list[str]:
        text = io.StringIO()
        assert doctor.run(kdbench.arguments("method=fitnet"), Console(file=text, width=200), 8, probe=True)
        return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in text.getvalue().splitlines()]

    lines = probed()
    assert "feature untrained" in lines
    (hint,) = (line for line in lines if line.startswith("hint ") and "parameters" in line)
    before, after = (float(word) for word in (hint.split()[-6], hint.split()[-4]))
    assert after < before  # the regressor of FitNets learns alone, some of the way
    assert any(line.endswith("nothing else learns") for line in lines if line.startswith("task "))
    kdbench("method=fitnet")
    assert "feature untrained scratch distilled" in probed()


def test_a_probe_needs_a_teacher(kdbench):
    with pytest.raises(KDBenchError, match="^--probe compares a student with its teacher"):
        doctor.run(kdbench.arguments("method=none"), Console(file=io.StringIO()), 2, probe=True)
