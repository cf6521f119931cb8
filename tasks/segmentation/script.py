"""Runs an exported segmenter on image files. NumPy, Pillow and ONNX Runtime alone: it is written beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.script import main
from tasks.pixels import decode
from tasks.segmentation.runs import described


def read_image(path: Path, facts: dict[str, Any]) -> np.ndarray:
    """Reads an image file as the model's evaluation read them: ``(1, 3, H, W)`` float32."""
    inputs = facts["inputs"]
    image = decode(path, 3, inputs["background"], inputs["range"])
    size = inputs["size"] or (None if facts["any_size"] else inputs["typical"])
    if size is not None and (image.height, image.width) != tuple(size):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    mean, std = (np.asarray(inputs[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255
    return ((pixels - mean) / std)[None]


def predict(session: Any, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the share of every class in an image, and the classes of all pixels as runs along the rows."""
    (logits,) = session.run(["logits"], {"images": read_image(path, facts)})
    return described(logits[0].argmax(0), facts["classes"])


if __name__ == "__main__":
    main(predict, "Tells the class of every pixel of image files with the exported model beside this file.")
