"""Runs an exported classifier on image files. NumPy, Pillow and ONNX Runtime alone: it is written beside the model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tasks.classification.sources.pixels import decode, to_size

TOP = 5


def load_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Opens an exported model, with what it says of its use."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["kdbench"])


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
    return {"input": str(path), "classes": found}


def main() -> None:
    """Prints an object a line."""
    parser = argparse.ArgumentParser(description="Classifies images with the exported model beside this file.")
    parser.add_argument("image", type=Path, nargs="+")
    name = Path(__file__).stem.removeprefix("run_") + ".onnx"
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name(name), help="default: %(default)s")
    options = parser.parse_args()
    session, facts = load_model(options.model)
    for path in options.image:
        print(json.dumps(predict(session, facts, path), ensure_ascii=False))


if __name__ == "__main__":
    main()
