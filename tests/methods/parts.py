"""A bench for methods that call a classifier of a role: hand-made features beside a real linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench import rng
from kdbench.build import build
from kdbench.fit import ENGINE_KEYS
from kdbench.signals import Cast
from kdbench.sources import Answer, Network
from kdbench.task import Batch, Task
from tests.methods.harness import Bench, Features, leaves, yaml

CLASSES = 5


class HandNetwork(Network):
    """Answers as :class:`tests.methods.harness.Hand` does; every feature counts as the classifier's input for taps."""

    def __init__(self, features: Features, classifier: nn.Module) -> None:
        model = nn.ModuleDict({"classifier": classifier})
        super().__init__(Task(), model, dict.fromkeys(features, "classifier:input"))
        self.features = features

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        return Answer(batch, None, {name: replace(f, values=f.values * 1) for name, f in self.features.items()})


class PartBench(Bench):
    """A :class:`Bench` whose roles have a classifier; the teacher's is frozen."""

    def __init__(
        self, name: str, student: Features, teacher: Features, widths: Mapping[str, int] | None = None, **options: Any
    ) -> None:
        self.name, self.bindings = name, {}
        spec = {k: v for k, v in yaml(name).items() if k not in ENGINE_KEYS}
        self.given = {"student": student, "teacher": teacher}
        with rng.scope(0, "init", "method"):
            self.method = build("method", spec | options)
            self.student, self.teacher = leaves(student), leaves(teacher)
            self.heads = {
                role: nn.Linear((widths or {}).get(role, next(iter(features.values())).values.shape[1]), CLASSES)
                for role, features in self.given.items()
            }
            self.heads["teacher"].requires_grad_(False)
            sources = {role: HandNetwork(self.given[role], head) for role, head in self.heads.items()}
            parts = {role: {"classifier": "classifier"} for role in sources}
            self.cast = Cast(Task(), self.method.roles, sources, parts)
            batch = Batch(None, None, torch.arange(len(self.student[0])))
            self.views = {role: {"main": batch} for role in self.method.roles}
            with torch.no_grad():
                self.method.build(self.signals())
