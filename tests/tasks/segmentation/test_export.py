"""Exported models: of any size, and the script beside them says what ``kdbench.predict`` says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from kdbench import export
from kdbench.errors import KDBenchError
from tasks.segmentation.task import SCRIPT, Segmentation
from tests.tasks.segmentation import tiny


def test_the_plan_says_which_sizes_a_model_takes():
    task = tiny.shaped()
    plan = task.export(task.build(tiny.NET))
    assert plan.dynamic == {"images": {0: "batch", 2: "height", 3: "width"}}
    assert plan.least == {"height": 64, "width": 64}
    assert plan.example[0].shape == (1, 3, 96, 192)
    assert plan.module(plan.example[0]).shape == (1, 3, 96, 192)
    pooled = task.export(task.build({**tiny.NET, "head": "pspnet"}))
    assert (pooled.dynamic, pooled.least, pooled.facts) == ({"images": {0: "batch"}}, {}, {"any_size": False})
    own = task.export(torch.nn.Conv2d(3, 3, 1))
    assert own.dynamic == {"images": {0: "batch"}}
    small = tiny.shaped(size=(48, 80))
    assert small.export(small.build(tiny.NET)).example[0].shape == (1, 3, 48, 80)


def written(task: Segmentation, architecture: dict[str, object], folder) -> torch.nn.Module:
    """Writes ``student.onnx`` and the script beside it; returns the model."""
    model = task.build(architecture).eval()
    plan, info = task.export(model), task.dataset()
    facts = {"classes": list(info.classes), "inputs": dict(info.inputs), **plan.facts}
    assert export._onnx(plan, folder / "student.onnx", json.dumps(facts)) < export.TOLERANCE
    (folder / "run_student.py").write_text(export._script(("kdbench.script", *SCRIPT), "student.onnx", "0"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fpn", "pspnet"])
def test_the_script_beside_a_model_predicts_as_kdbench_does(tmp_path, head):
    task = tiny.shaped()
    model = written(task, {**tiny.NET, "head": head}, tmp_path)
    sizes = ((96, 192), (101, 167)) if head == "fpn" else ((96, 192),)
    for seed, size in enumerate(sizes):
        tiny.image(seed, size).save(tmp_path / f"{seed}.png")
    names = [f"{seed}.png" for seed in range(len(sizes))]
    done = subprocess.run(
        [sys.executable, "run_student.py", *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for line, name, size in zip(done.stdout.splitlines(), names, sizes, strict=True):
        found = json.loads(line)
        (expected,) = task.predictions(model, task.read(tmp_path / name))
        assert found.pop("input") == name
        assert tuple(found["size"]) == size
        apart = sum(abs(a["share"] - b["share"]) for a, b in zip(found["classes"], expected["classes"], strict=True))
        assert apart < 1e-3  # a tie may be broken in another way


class Branching(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.mean() > 0 else -images


def test_what_cannot_be_exported_is_one_line(tmp_path):
    plan = tiny.shaped().export(Branching())
    with pytest.raises(KDBenchError, match="^the student cannot be exported: "):
        export._pt2(plan, tmp_path / "x.pt2", "{}")
