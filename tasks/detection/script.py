"""Runs an exported detector on image files. NumPy, Pillow and ONNX Runtime alone: it is written beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.script import main
from tasks.pixels import decode


def read_image(path: Path, facts: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads an image file: ``(1, 3, H, W)`` float32 RGB from 0 to 255, and its height and width as the model sees it.

    It is scaled as in the run, further down where it would not fit, and padded with the mean that the model subtracts.
    """
    inputs, (tall, wide) = facts["inputs"], facts["canvas"]
    image = decode(path, 3, inputs["background"], inputs["range"])
    factor = 1.0
    if inputs["size"] is not None:
        shorter, longer = sorted((image.height, image.width))
        factor = min(inputs["size"][0] / shorter, inputs["size"][1] / longer)
    factor = min(factor, tall / image.height, wide / image.width)
    if factor != 1:
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.broadcast_to(np.asarray(facts["padding"], np.float32)[:, None, None], (3, tall, wide)).copy()
    pixels[:, : image.height, : image.width] = np.asarray(image).transpose(2, 0, 1)
    return pixels[None], (image.height, image.width)


def detect(scores: np.ndarray, boxes: np.ndarray, size: tuple[int, int], facts: dict[str, Any]) -> list[np.ndarray]:
    """Returns the detections of an image, best first, as the detector's package finds them.

    Args:
        scores: ``(A, C)`` of anchors, level after level.
        boxes: ``(A, 4)`` left, top, right, bottom.
        size: Height and width of the image; boxes end there.
        facts: ``levels`` (anchors of each), and ``rules``: least ``score``, most candidates ``per_level``, ``overlap``
            from which on a box yields to a better one of its class, ``most`` detections, ``least_side``.

    Returns:
        ``(N, 4)`` boxes, ``(N,)`` classes and ``(N,)`` scores.
    """
    rules, kept = facts["rules"], []
    first = 0
    for count in facts["levels"]:
        rows, classes = np.nonzero(scores[first : first + count] > rules["score"])
        order = np.argsort(-scores[first + rows, classes], kind="stable")[: rules["per_level"]]
        kept.append((first + rows[order], classes[order]))
        first += count
    rows, classes = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    found = boxes[rows].clip(0, np.array([size[1], size[0]] * 2, np.float32))
    told = scores[rows, classes]
    if rules["least_side"] is not None:
        large = (found[:, 2:] - found[:, :2] > rules["least_side"]).all(1)
        found, classes, told = found[large], classes[large], told[large]
    order = np.argsort(-told, kind="stable")
    found, classes, told = found[order], classes[order], told[order]
    best = unrivalled(found, classes, rules["overlap"])[: rules["most"]]
    return [found[best], classes[best], told[best]]


def unrivalled(boxes: np.ndarray, classes: np.ndarray, share: float) -> np.ndarray:
    """Returns which boxes ``(N, 4)``, best first, stay: those that overlap no better one of their class that does."""
    alive = np.ones(len(boxes), bool)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for row in range(len(boxes)):
        if alive[row]:
            rest = boxes[row + 1 :]
            low, high = np.maximum(boxes[row, :2], rest[:, :2]), np.minimum(boxes[row, 2:], rest[:, 2:])
            met = (high - low).clip(0).prod(1)
            rival = met > share * (area[row] + area[row + 1 :] - met)
            alive[row + 1 :] &= ~(rival & (classes[row + 1 :] == classes[row]))
    return np.flatnonzero(alive)


def predict(session: Any, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns class, score and box (left, top, right, bottom, pixels of what the model sees) of every detection."""
    image, size = read_image(path, facts)
    scores, boxes = session.run(["scores", "boxes"], {"images": image})
    found = zip(*(value.tolist() for value in detect(scores[0], boxes[0], size, facts)), strict=True)
    return {
        "size": list(size),
        "objects": [
            {"class": facts["classes"][label], "score": round(score, 4), "box": [round(side, 2) for side in box]}
            for box, label, score in found
        ],
    }


if __name__ == "__main__":
    main(predict, "Finds the objects of image files with the exported model beside this file.")
