"""Exported detectors: the script beside the file finds what ``kdbench.predict`` finds, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from kdbench import export
from kdbench.base import rng
from tasks.detection import script
from tasks.detection.task import SCRIPT, adapter
from tests.tasks.detection import tiny


def sure(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Returns a detector whose scores are high and differ, so that there is something to find and nothing ties."""
    last = [f"{name}.{part}" for name in ("retina_cls", "gfl_cls", "cls_logits") for part in ("weight", "bias")]
    weight, bias = (p for name, p in model.named_parameters() if name.endswith(tuple(last)))
    with torch.no_grad():
        weight.mul_(2 / float(adapter(model).raw(model, images)[0].logit().std()))
        bias.fill_(-1.0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "gfl", "retinanet_tv"])
def test_the_script_beside_a_model_finds_what_kdbench_finds(tmp_path, name):
    task = tiny.shaped()
    noise = rng.numpy(0, "image").integers(0, 256, (*tiny.SIZE, 3)).astype("uint8")
    with rng.scope(0, "detector"):
        model = task.build(tiny.DETECTORS[name]).eval()
    sure(model, torch.from_numpy(noise).permute(2, 0, 1)[None].float())
    plan, info = task.export(model), task.dataset()
    facts = {"classes": list(info.classes), "inputs": dict(info.inputs), **plan.facts}
    assert export._onnx(plan, tmp_path / "student.onnx", json.dumps(facts)) < export.TOLERANCE
    (tmp_path / "run_student.py").write_text(export._script(("kdbench.script", *SCRIPT), "student.onnx", "0"))
    Image.fromarray(noise).save(tmp_path / "own.png")
    done = subprocess.run(
        [sys.executable, "run_student.py", "own.png"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    (expected,) = task.predictions(model, task.read(tmp_path / "own.png"))
    assert found.pop("input") == "own.png"
    assert tuple(found["size"]) == tiny.SIZE
    assert len(expected["objects"]) > 10
    assert len(found["objects"]) == len(expected["objects"])
    for other in expected["objects"]:  # in their order but for scores that are alike to the last digits
        assert any(
            own["class"] == other["class"]
            and abs(own["score"] - other["score"]) < 1e-3
            and np.allclose(own["box"], other["box"], atol=0.1)
            for own in found["objects"]
        )


def test_what_needs_more_than_scores_and_boxes_has_no_script():
    task = tiny.shaped()
    for name in ("fcos", "faster", "fcos_tv", "faster_tv"):
        assert task.export(task.build(tiny.DETECTORS[name])).script == ()


def test_suppression_is_that_of_torchvision():
    draw = rng.numpy(0, "boxes")
    corner = draw.random((200, 2)) * 40
    boxes = np.concatenate([corner, corner + 3 + 20 * draw.random((200, 2))], 1).astype(np.float32)
    classes, scores = draw.integers(0, 3, 200), np.sort(draw.random(200).astype(np.float32))[::-1].copy()
    expected = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.5)
    assert script.unrivalled(boxes, classes, 0.5).tolist() == expected.tolist()


def test_an_image_of_another_size_fits_and_padding_is_the_mean(tmp_path):
    facts = {
        "inputs": {"size": None, "background": "#808080", "range": None},
        "canvas": [64, 96],
        "padding": [1.0, 2.0, 3.0],
    }
    Image.new("RGB", (48, 32), (9, 9, 9)).save(tmp_path / "small.png")
    image, size = script.read_image(tmp_path / "small.png", facts)
    assert image.shape == (1, 3, 64, 96)
    assert size == (32, 48)
    assert (image[0, :, :32, :48] == 9).all()
    assert image[0, :, 40, 60].tolist() == [1.0, 2.0, 3.0]
    Image.new("RGB", (192, 64), (9, 9, 9)).save(tmp_path / "large.png")
    assert script.read_image(tmp_path / "large.png", facts)[1] == (32, 96)
