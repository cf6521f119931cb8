"""Label-assigned distillation: what a teacher detects is true for the student, beside what is.

Yang, Shi, Ding, Wang & Qi, Towards Efficient 3D Object Detection with Knowledge Distillation (NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdbench.errors import KDBenchError


def confident(scores: Tensor, labels: Tensor, thresholds: Tensor) -> Tensor:
    """Says which detections are sure enough to learn from: ``score > threshold of its class``.

    Args:
        scores: from 0 to 1 (N,).
        labels: classes, integers (N,).
        thresholds: of each class (C,).

    Returns:
        (N,) bool.

    Raises:
        KDBenchError: there are not as many labels as scores.

    Example:
        >>> confident(torch.tensor([0.7, 0.7, 0.6]), torch.tensor([0, 1, 0]), torch.tensor([0.6, 0.8]))
        tensor([ True, False, False])
    """
    if scores.shape != labels.shape:
        raise KDBenchError(
            f"confident: scores of shape {tuple(scores.shape)} and labels of shape {tuple(labels.shape)}, "
            "expected one label a score"
        )
    return scores > thresholds.to(scores)[labels]


def join_labels(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins what was found with what is true, sample by sample, what was found first.

    Args:
        found: tensors by name, one row an object, ``batch`` among them: the sample of each, integers (N,).
        truth: those of them that are wanted, ``batch`` among them (M,).

    Returns:
        Those of ``truth``, (N + M,), by sample.

    Raises:
        KDBenchError: ``found`` lacks one of them.

    Example:
        >>> found = {"batch": torch.tensor([1]), "labels": torch.tensor([7])}
        >>> join_labels(found, {"batch": torch.tensor([0, 1]), "labels": torch.tensor([3, 4])})
        {'batch': tensor([0, 1, 1]), 'labels': tensor([3, 7, 4])}
    """
    lacking = sorted(truth.keys() - found.keys())
    if lacking:
        raise KDBenchError(f"join_labels: what was found has no {lacking[0]!r}, which what is true has")
    order = torch.cat([found["batch"], truth["batch"]]).argsort(stable=True)
    return {name: torch.cat([found[name].to(rows), rows])[order] for name, rows in truth.items()}
