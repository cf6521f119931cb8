from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.configuration.compat import bind, no_replay
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.methods.label_kd import LabelKD
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Answer
from kdbench.task import Batch, Task
from tests.methods.boxes import PAIR
from tests.methods.harness import Bench, Hand, Invariants, normal, yaml
from tests.toy import Toy

CLASSES = ["Pedestrian", "Cyclist", "Car"]


class Finding(Task):
    """Each sample's row (4, 3) is four detections: score, class, place; the loss is the distance to all true places."""

    def dataset(self) -> Any:
        return SimpleNamespace(classes=CLASSES)

    def loss_weights(self) -> Mapping[str, float]:
        return {"near": 2.0}

    def loss(self, model: nn.Module, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        targets = batch.targets
        own = outputs.float().mean((1, 2))[targets["batch"]]
        if batch.supervised is not None:
            own = own[batch.supervised[targets["batch"]]]
        near = (own.sum() - targets["place"].sum()).square() + outputs.float().square().sum()
        return {"near": near, "count": outputs.sum() * 0 + len(targets["batch"])}

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        def objects(model: nn.Module, outputs: Tensor) -> dict[str, Tensor]:
            rows = outputs.float().flatten(0, 1)
            sample = torch.arange(len(outputs)).repeat_interleave(outputs.shape[1])
            return {
                "scores": rows[:, 0].sigmoid(),
                "labels": rows[:, 1].abs().long() % 3,
                "place": rows[:, 2],
                "batch": sample,
            }

        return {
            "objects": objects,
            "true_objects": lambda batch: batch.targets,
            "with_objects": lambda batch, found: replace(batch, targets=found),
        }


class Telling(Hand):
    """Answers with raw outputs."""

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        given = super().answer(batch, params)
        return Answer(batch, given.features["logits"].values, given.features)


class Modelled(Cast):
    def model(self, role: str) -> nn.Module:
        return nn.Identity()


class LabelBench(Bench):
    def make_cast(self) -> Cast:
        return Modelled(Finding(), self.method.roles, {role: Telling(found) for role, found in self.given.items()})

    def signals(self, step: int = 0) -> Any:
        batch = self.views["student"]["main"]
        if batch.targets is None:
            count = len(batch)
            targets = {"labels": torch.zeros(count, dtype=torch.long), "batch": torch.arange(count)}
            batch.targets = targets | {"place": torch.linspace(0, 1, count)}
        return super().signals(step)


class TestLabelKD(Invariants):
    name = "label_kd"
    other = {"threshold": [0.2, 0.6, 0.2]}

    def bench(self, batch: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> LabelBench:
        student, teacher = ({"logits": Logits((3 * normal(batch, 4, 3, name=r)).to(dtype))} for r in ("s", "t"))
        return LabelBench(self.name, student, teacher, **options)

    def test_low_precision(self):
        """Raw outputs stay as they come: the loss is the task's own."""
        assert self.bench(dtype=torch.bfloat16).loss().item() == pytest.approx(self.bench().loss().item(), rel=0.2)

    def expected(self, made: LabelBench, thresholds: list[float]) -> tuple[list[int], list[float]]:
        """Samples and places of the labels of a batch, one by one."""
        samples, places, (teacher,) = [], [], made.teacher
        truth = made.signals().batch().targets
        for b in range(len(teacher)):
            for score, label, place in teacher[b].tolist():
                if torch.tensor(score).sigmoid().item() > thresholds[int(abs(label)) % 3]:
                    samples.append(b)
                    places.append(place)
            own = truth["batch"] == b
            samples += [b] * int(own.sum())
            places += truth["place"][own].tolist()
        return samples, places

    @pytest.mark.parametrize(
        ("options", "thresholds"),
        [({}, [0.6] * 3), ({"threshold": [0.3, 0.3, 0.8]}, [0.3, 0.3, 0.8])],
    )
    def test_labels(self, options, thresholds):
        made = self.bench(**options)
        found = made.method.labelled(made.signals()).targets
        samples, places = self.expected(made, thresholds)
        assert 3 < len(samples) < 15
        assert found["batch"].tolist() == samples
        assert found["place"].tolist() == pytest.approx(places)
        task, batch = Finding(), replace(made.signals().batch(), targets=found)
        losses = task.loss(nn.Identity(), made.student[0], batch)
        assert made.loss().item() == pytest.approx((2 * losses["near"] + losses["count"]).item())

    def test_of_samples_that_are_not_supervised_only_the_teacher_says_and_of_others_that_are_not_distilled_only_truth(
        self,
    ):
        made = self.bench(threshold=0.0)
        batch = made.signals().batch()
        batch.supervised, batch.distilled = torch.tensor([True, False, False]), torch.tensor([False, True, False])
        made_labels = made.method.labelled(made.signals())
        assert made_labels.targets["batch"].tolist() == [0, 1, 1, 1, 1]
        assert made_labels.supervised.tolist() == [True, True, False]
        batch.distilled = None
        made_labels = made.method.labelled(made.signals())
        assert made_labels.targets["batch"].bincount().tolist() == [5, 4, 4]
        assert made_labels.supervised is None


def test_a_threshold_too_few_is_one_line():
    with pytest.raises(KDBenchError, match=r"^method\.threshold has 2 values, expected one for each of Pedestrian, Cy"):
        TestLabelKD().bench(threshold=[0.5, 0.5])


def test_binds_and_weighs():
    with pytest.raises(KDBenchError, match="^LabelKD requires objects, which task toy lacks$"):
        bind(LabelKD, Toy, PAIR)
    assert no_replay(LabelKD) == "it reads what the teacher says itself, of which features alone are stored"
    assert yaml("label_kd")["weights"] == {"task": 0.0, "labels": 1.0}
