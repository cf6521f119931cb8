"""Label-assigned distillation.

Paper: Yang, Shi, Ding, Wang, Qi, "Towards Efficient 3D Object Detection with Knowledge Distillation", NeurIPS 2022:
what the teacher detects with some confidence joins the true objects, and the student's own assigner makes its targets
of both. It is one part of SparseKD; the other is ``method=pivotal_kd``.
Read: the authors' code, CVMI-Lab/SparseKD (``kd_head.py``, the configurations of Waymo); of the paper its abstract
alone. As there, detections come before true objects, a detection beside a true object stays, and the loss on both
stands for the supervised one.
Deviations: detections are those that the task scores, so after suppression of overlapping ones, which the released
configurations leave out. Detections of samples that are not distilled, and true objects of samples that are not
supervised, have no part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench import Batch, Context, KDBenchError, Method, Signals
from kdbench.functional.label_kd import confident, join_labels
from kdbench.signals import total

Threshold = Annotated[float, Field(ge=0, le=1)]


class LabelKD(Method):
    """The supervised loss of the student on true objects and on those that the teacher is sure of.

    Args:
        threshold: Score above which a detection is true; or a list of one for each class.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"objects"})
    raw: ClassVar[bool] = True

    def __init__(self, threshold: Threshold | list[Threshold] = 0.6) -> None:
        super().__init__()
        self.threshold = threshold

    def build(self, probe: Signals) -> None:
        """Gives each class its threshold."""
        classes = list(probe.cast.task.dataset().classes)
        values = self.threshold if isinstance(self.threshold, list) else [self.threshold] * len(classes)
        if len(values) != len(classes):
            raise KDBenchError(
                f"method.threshold has {len(values)} values, expected one for each of {', '.join(classes)}, or one "
                "number for all"
            )
        self.register_buffer("by_class", torch.tensor(values), persistent=False)

    by_class: Tensor

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``labels``."""
        task, answer = signals.cast.task, signals.answer("student")
        losses = task.loss(signals.cast.model("student"), answer.outputs, self.labelled(signals))
        weights = task.loss_weights()
        return {"labels": total(weights.get(name, 1.0) * value for name, value in losses.items())}

    @torch.no_grad()
    def labelled(self, signals: Signals) -> Batch:
        """Returns the student's batch with what the teacher is sure of among its true objects."""
        ops, batch = signals.cast.task.ops(), signals.answer("student").batch
        found = ops["objects"](signals.cast.model("teacher"), signals.answer("teacher").outputs)
        kept = confident(found["scores"], found["labels"], self.by_class)
        truth = ops["true_objects"](batch)
        if batch.distilled is not None:
            kept = kept & batch.distilled[found["batch"]]
        supervised = batch.supervised
        if supervised is not None:
            own = supervised[truth["batch"]]
            truth = {name: rows[own] for name, rows in truth.items()}
            supervised = None if batch.distilled is None else supervised | batch.distilled
        joined = join_labels({name: rows[kept] for name, rows in found.items()}, truth)
        made: Batch = ops["with_objects"](replace(batch, supervised=supervised), joined)
        return made
