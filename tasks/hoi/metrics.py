"""Scores of labelled steps and clips: by step, by segment, and by ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix, multilabel_average_precision

from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN

#: Overlaps from which on a segment is found.
OVERLAPS = (0.10, 0.25, 0.50)


class Scores(Metric):
    """What is said of people and objects at labelled steps, and of clips, in percent; each only where it was said.

    Of people ``macro_f1``, the mean F1 over the classes that occur in the truth; ``accuracy``; ``f1``, each class's own
    by its name; and ``f1_10``, ``f1_25``, ``f1_50`` (:func:`segmental_f1`), means over tracks: a person or object of a
    video, of which steps without a label are left out. The same of objects under ``object``. Of clips ``map``, the mean
    over the classes that occur of the average precision of their ranking (the metric of Charades, Sigurdsson et al.,
    ECCV 2016), and ``macro_f1`` of deciding at one half.

    Args:
        classes: Their names, by ``human``, ``object`` and ``clip``.
        kwargs: As for ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    human_matrix: Tensor
    object_matrix: Tensor
    clip_scores: list[Tensor]
    clip_truth: list[Tensor]

    def __init__(self, classes: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = {target: tuple(names) for target, names in classes.items()}
        for kind in (HUMAN, OBJECT):
            count = len(self.classes[kind])
            self.add_state(f"{kind}_matrix", torch.zeros(count, count, dtype=torch.long), dist_reduce_fx="sum")
            self.add_state(f"{kind}_segments", torch.zeros(len(OVERLAPS)), dist_reduce_fx="sum")
            self.add_state(f"{kind}_tracks", torch.zeros(()), dist_reduce_fx="sum")
        for name in ("clip_scores", "clip_truth"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            logits: By target: of people and objects ``(B, T, K, classes)``, of clips ``(B, classes)``.
            targets: Labels, without the axis of classes; of clips ``(B, classes)``, one where the clip has the label.
        """
        for kind in {HUMAN, OBJECT} & logits.keys():
            said, true = logits[kind].argmax(-1), targets[kind]
            matrix = multiclass_confusion_matrix(
                said.flatten(), true.flatten(), len(self.classes[kind]), ignore_index=UNKNOWN, validate_args=False
            )
            setattr(self, f"{kind}_matrix", getattr(self, f"{kind}_matrix") + matrix)
            self._add_tracks(kind, said, true)
        if CLIP in logits:
            self.clip_scores.append(logits[CLIP])
            self.clip_truth.append(targets[CLIP].long())

    def _add_tracks(self, kind: str, said: Tensor, true: Tensor) -> None:
        tracks = zip(*(x.transpose(1, 2).flatten(0, 1).cpu().numpy() for x in (said, true)), strict=True)
        found = [segmental_f1(own[known], right[known]) for own, right in tracks if (known := right != UNKNOWN).any()]
        totals, count = getattr(self, f"{kind}_segments"), getattr(self, f"{kind}_tracks")
        setattr(self, f"{kind}_segments", totals + torch.tensor(np.sum(found, 0) if found else 0.0).to(totals))
        setattr(self, f"{kind}_tracks", count + len(found))

    def compute(self) -> dict[str, Any]:
        """Returns the scores of all batches so far."""
        human, thing = (self._steps(kind) for kind in (HUMAN, OBJECT))
        return human | ({OBJECT: thing} if thing else {}) | self._clips()

    def _steps(self, kind: str) -> dict[str, Any]:
        matrix = getattr(self, f"{kind}_matrix").cpu().double()
        if not matrix.sum():
            return {}
        hit, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        f1 = torch.where(true > 0, 200 * hit / (true + said), torch.nan)
        shares = 100 * getattr(self, f"{kind}_segments") / getattr(self, f"{kind}_tracks")
        return {
            "macro_f1": f1[true > 0].mean(),
            "accuracy": 100 * hit.sum() / matrix.sum(),
            "f1": dict(zip(self.classes[kind], f1, strict=True)),
            **{f"f1_{round(100 * least)}": share for least, share in zip(OVERLAPS, shares, strict=True)},
        }

    def _clips(self) -> dict[str, Any]:
        if not self.clip_scores:
            return {}
        logits, truth = torch.cat(self.clip_scores), torch.cat(self.clip_truth)
        there = truth.sum(0) > 0
        logits, truth = logits[:, there], truth[:, there]
        precision = multilabel_average_precision(logits.sigmoid(), truth, truth.shape[1], validate_args=False)
        said = logits > 0
        f1 = 2 * (said & (truth > 0)).sum(0) / (said.sum(0) + truth.sum(0))
        return {"macro_f1": 100 * f1.mean(), "map": 100 * precision}


def segmental_f1(predicted: np.ndarray, truth: np.ndarray) -> list[float]:
    """Returns the F1 of a track's segments at each of :data:`OVERLAPS`, from 0 to 1.

    Lea et al.: Temporal Convolutional Networks for Action Segmentation and Detection, CVPR 2017, section 4.1: steps of
    one label in a row are a segment; one that is found is right where it overlaps the best true segment of its label by
    at least a share of their union, and no other found one has that already.

    Args:
        predicted: Labels ``(T,)``.
        truth: Likewise, all of them known.
    """
    (first_said, last_said, said), (first_true, last_true, true) = (segments(labels) for labels in (predicted, truth))
    met = np.minimum(last_said[:, None], last_true) - np.maximum(first_said[:, None], first_true)
    union = np.maximum(last_said[:, None], last_true) - np.minimum(first_said[:, None], first_true)
    overlap = np.where(said[:, None] == true, np.maximum(met, 0) / union, 0)
    best = overlap.argmax(1)
    reached = overlap[np.arange(len(said)), best]
    found = []
    for share in OVERLAPS:
        right = len(np.unique(best[reached >= share]))
        found.append(2 * right / (len(said) + len(true)))
    return found


def segments(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns first step, step behind the last, and label of each segment of ``(T,)``."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    first, last = np.array([*pairwise(edges)]).T
    return first, last, labels[first]
