"""Students as people bring them: each works, or the run ends with one line before anything trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.records.record import find_records
from kdbench.runs.deployment import read_run
from tests.cli import CommandLine
from tests.toy import CLASSES


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(CLASSES))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * 64, 3 * 64), nn.Linear(3 * 64, 3 * 64)
        self.second.weight = self.first.weight
        self.head = self.same = nn.Linear(3 * 64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.same(self.second(self.first(images.flatten(1)).relu()))


class Parameterless(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :CLASSES]


class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Two(Plain):
    def forward(self, images: Tensor) -> Any:
        outputs = super().forward(images)
        return (outputs, outputs) if self.training else outputs


class Single(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:1]).expand(len(images), -1)


class Broken(Plain):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("two\nlines")


class Elsewhere(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1, device="meta"))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.table


class Half(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.half()


class Unmade(nn.Module):
    def __init__(self) -> None:
        raise ValueError("no such width")


class Nothing: ...


@pytest.mark.parametrize("name", ["Plain", "Lazy", "Shared"])
def test_unusual_students_train_and_come_back(kdbench, name):
    student = f"student._target_=tests.training.test_models.{name}"
    assert kdbench("method=kd", student, "teacher.trainer.epochs=1").code == 0
    (path,) = find_records(kdbench.results)
    run = read_run(path)
    outputs = run.artifact().module(torch.zeros(2, 3, 8, 8))
    assert outputs.shape == (2, CLASSES)
    assert torch.isfinite(outputs).all()


def test_a_lazy_student_and_its_twin_start_alike(kdbench):
    kdbench("method=none", "student._target_=tests.training.test_models.Lazy", "seed=3")
    kdbench("method=toy_idle", "student._target_=tests.training.test_models.Lazy", "seed=3")
    none, other = (record for record in sorted(kdbench.records(), key=lambda record: record.method))
    assert none.scores["scratch"] == other.scores["scratch"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Parameterless", "the student Parameterless has no parameter that trains"),
        ("Frozen", "the student Frozen has no parameter that trains"),
        ("Two", "the student Two fails in train mode on a batch of 16 samples: TypeError: cross_entropy"),
        ("Single", "the student Single fails in train mode on a batch of 16 samples: ValueError: Expected more than 1"),
        ("Broken", "the student Broken fails in eval mode on a batch of 16 samples: RuntimeError: two lines"),
        ("Elsewhere", "the student Elsewhere fails in eval mode"),
        ("Half", "the student Half fails in eval mode on a batch of 16 samples: RuntimeError: mat1 and mat2"),
        ("Unmade", "the student's tests.training.test_models.Unmade cannot be built: ValueError: no such width"),
        ("Nothing", "the student's architecture makes a Nothing, expected a torch.nn.Module"),
    ],
)
def test_what_cannot_train_ends_with_one_line_before_anything_trains(kdbench, name, line):
    assert kdbench("method=kd", f"student._target_=tests.training.test_models.{name}").error.startswith(line)
    assert not kdbench.results.exists()
    assert not kdbench.manifests()


def test_a_teacher_is_tried_out_too(kdbench):
    line = kdbench("method=kd", "teacher._target_=tests.training.test_models.Frozen").error
    assert line == "the teacher Frozen has no parameter that trains"
