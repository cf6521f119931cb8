"""Runs an exported classifier on image files. NumPy, Pillow and ONNX Runtime alone: it is written beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdbench.script import main
from tasks.pixels import decode, to_size

TOP = 5


def read_image(path: Path, inputs: dict[str, Any]) -> np.ndarray:
    """Reads an image file as the model's evaluation read them: ``(1, C, H, W)`` float32."""
    mean, std = (np.asarray(inputs[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
    image = decode(path, len(mean), inputs["background"], inputs["range"])
    how = {name: inputs[name] for name in ("central", "crop", "side", "interpolation")}
    pixels = to_size(image, tuple(inputs["size"]), **how)
    return (pixels * (1 / (255 * std)) - mean / std)[None]


def predict(session: Any, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the (at most five) most probable classes of an image with their probabilities."""
    (logits,) = session.run(["logits"], {"images": read_image(path, facts["inputs"])})
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:TOP]
    found = [{"class": facts["classes"][i], "probability": round(float(shares[i]), 4)} for i in best]
    return {"classes": found}


if __name__ == "__main__":
    main(predict, "Classifies images with the exported model beside this file.")
