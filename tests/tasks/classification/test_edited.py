"""Data that change between runs: what learned from them is trained again, and what is scored on them scored again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli import CommandLine
from tests.tasks.classification.layouts import open_with

CLASSES = ("ant", "bee", "cat")


def paint(path: Path, k: int, seed: int) -> None:
    """An image of noise with more of colour ``k``."""
    pixels = np.random.default_rng(seed).integers(0, 120, (20, 24, 3))
    pixels[..., k] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    for part, each in (("train", 10), ("val", 4)):
        for k, name in enumerate(CLASSES):
            for i in range(each):
                paint(tmp_path / "data" / part / name / f"{i}.png", k, 10 * k + i)
    return tmp_path / "data"


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys, "classification")


def trained(kdbench: CommandLine) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in kdbench.cache.glob("model/*/*.safetensors")}


def test_what_is_scored_on_an_edited_test_set_is_what_was_trained_before(kdbench, root, tmp_path):
    options = [
        *("data=imagefolder", f"data.root={root}", "data.size=16", "data.workers=0", "method=kd"),
        *("pair=resnet8_w16_w4", "trainer.epochs=2", "trainer.optimizer.lr=0.02"),
    ]
    assert kdbench(*options).code == 0
    (first,), models = kdbench.records(), trained(kdbench)
    assert len(kdbench.manifests()) == 3

    # Broken, then mended by another image; half of a class looks like another one.
    image = root / "val" / "bee" / "0.png"
    image.write_bytes(image.read_bytes()[:100])
    assert "val/bee/0.png" in kdbench(*options).error
    for i in range(2):
        paint(root / "val" / "bee" / f"{i}.png", 0, 50 + i)
    assert kdbench(*options).code == 0
    assert trained(kdbench) == models
    (second,) = (record for record in kdbench.records() if record.run_id != first.run_id)
    assert first.dataset.digest != second.dataset.digest
    assert first.spec_hash != second.spec_hash

    # All that it reports is what a run from nothing on these data would.
    kdbench.cache, kdbench.results = tmp_path / "empty", tmp_path / "others"
    assert kdbench(*options).code == 0
    (fresh,) = kdbench.records()
    assert fresh.run_id == second.run_id
    for name in ("teacher", "scratch", "student"):
        assert fresh.scores[name] == second.scores[name]
        assert second.scores[name].test["nll"] != first.scores[name].test["nll"]

    # Validation is cut from the training images.
    models = trained(kdbench)
    paint(root / "train" / "bee" / "0.png", 1, 99)
    assert kdbench(*options).code == 0
    assert len(kdbench.manifests()) == 6
    assert models.items() < trained(kdbench).items()


@pytest.mark.parametrize("changed", ["val", "test"])
def test_of_three_splits_validation_is_learned_from(root, tmp_path, changed):
    for k, name in enumerate(CLASSES):
        paint(root / "test" / name / "0.png", k, 70 + k)

    def digests() -> tuple[str, str]:
        images = open_with(tmp_path / "cache", source="imagefolder", root=str(root), size=16)
        return images.digest, images.learned

    whole, learned = digests()
    paint(root / changed / "ant" / "0.png", 0, 80)
    other, now = digests()
    assert other != whole
    assert (now == learned) == (changed == "test")
