"""COCO's average precision, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from kdbench.errors import KDBenchError
from tasks.detection.coco import Truth
from tasks.detection.outputs import Found

#: Of COCOeval's summary, what is told under which name.
SUMMARY = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar_100": 8}


class CocoAP(Metric):
    """Average precision as COCO has it.

    ``compute`` returns, in percent, ``ap`` over the thresholds 0.5 to 0.95 of the overlap, ``ap50``, ``ap75``, those by
    the size of objects (``ap_small`` below 32² pixels, ``ap_medium``, ``ap_large`` from 96²), ``ar_100``, the recall of
    100 detections an image, and ``class_ap``, each class's own by its name. What no object is of is not a number.

    Args:
        classes: Their names.
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0
    found: list[Tensor]
    truth: list[Tensor]
    images: list[Tensor]

    def __init__(self, classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(classes)
        for name in ("found", "truth", "images"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, ids: Tensor, found: Sequence[Found], truth: Sequence[Truth]) -> None:
        """Adds images.

        Args:
            ids: ``(B,)`` their ids, each once in a set.
            found: What was detected, in the pixels of the truth.
            truth: What there is.
        """
        self.images.append(ids.double().cpu())
        for number, own, true in zip(ids.tolist(), found, truth, strict=True):
            rows = torch.cat([own.boxes, own.labels[:, None].to(own.boxes), own.scores[:, None].to(own.boxes)], 1)
            self.found.append(torch.nn.functional.pad(rows.double().cpu(), (1, 0), value=float(number)))
            extra = np.column_stack([true.boxes, true.labels, true.areas, true.crowd]).astype(np.float64)
            self.truth.append(torch.nn.functional.pad(torch.from_numpy(extra), (1, 0), value=float(number)))

    def compute(self) -> dict[str, Any]:
        """Returns the scores of all images so far."""
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ModuleNotFoundError:
            raise KDBenchError("COCO's evaluation needs pycocotools: pip install 'kdbench[detection]'") from None

        images, found, truth = (_whole(value) for value in (self.images, self.found, self.truth))
        nothing = dict.fromkeys(SUMMARY, float("nan")) | {"class_ap": dict.fromkeys(self.names, float("nan"))}
        if not len(truth) or not (truth[:, 7] == 0).any():
            return nothing
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = self._dataset(images, truth)
            known.createIndex()
            seen = known.loadRes(_detections(found)) if len(found) else COCO()
            if not len(found):
                seen.dataset = {**known.dataset, "annotations": []}
                seen.createIndex()
            judged = COCOeval(known, seen, "bbox")
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        told = {name: _percent(judged.stats[place]) for name, place in SUMMARY.items()}
        precision = judged.eval["precision"][:, :, :, 0, 2]  # threshold, recall, class; all sizes, 100 detections
        each = {}
        for number, name in enumerate(self.names):
            own = precision[:, :, number]
            each[name] = _percent(own[own > -1].mean()) if (own > -1).any() else float("nan")
        return told | {"class_ap": each}

    def _dataset(self, images: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        return {
            "images": [{"id": int(number)} for number in images],
            "categories": [{"id": number, "name": name} for number, name in enumerate(self.names)],
            "annotations": [
                {
                    "id": number + 1,
                    "image_id": int(row[0]),
                    "category_id": int(row[5]),
                    "bbox": _box(row),
                    "area": float(row[6]),
                    "iscrowd": int(row[7]),
                }
                for number, row in enumerate(truth)
            ],
        }


def _whole(value: Any) -> np.ndarray:
    parts = value if isinstance(value, list) else [value]
    return torch.cat(parts).numpy() if parts else np.empty((0, 8))


def _box(row: np.ndarray) -> list[float]:
    left, top, right, bottom = row[1:5].tolist()
    return [left, top, right - left, bottom - top]


def _detections(found: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"image_id": int(row[0]), "category_id": int(row[5]), "bbox": _box(row), "score": float(row[6])}
        for row in found
    ]


def _percent(value: float) -> float:
    """COCOeval says -1 where there is nothing to count."""
    return 100 * float(value) if value > -1 else float("nan")
