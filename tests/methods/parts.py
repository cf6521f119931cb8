"""A bench for methods that call a classifier of a role: hand-made features beside a real linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.roles.cast import Cast
from kdbench.roles.sources import Answer, Network
from kdbench.task import Batch, Task
from tests.methods.harness import Bench, Features, by_hand

CLASSES = 5


class HandNetwork(Network):
    """Answers as :class:`tests.methods.harness.Hand` does; every feature counts as the classifier's input for taps."""

    def __init__(self, features: Features, classifier: nn.Module) -> None:
        model = nn.ModuleDict({"classifier": classifier})
        super().__init__(Task(), model, dict.fromkeys(features, "classifier:input"))
        self.features = features

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        return by_hand(self.features, batch)


class PartBench(Bench):
    """A :class:`Bench` whose roles have a classifier; the teacher's is frozen.

    Args:
        widths: Features that a role's classifier reads; the channels of its first feature by default.
    """

    def __init__(
        self, name: str, student: Features, teacher: Features, widths: Mapping[str, int] | None = None, **options: Any
    ) -> None:
        self.widths = widths or {}
        super().__init__(name, student, teacher, **options)

    def make_cast(self) -> Cast:
        channels = {role: next(iter(found.values())).values.shape[1] for role, found in self.given.items()}
        self.heads = {role: nn.Linear(width, CLASSES) for role, width in (channels | dict(self.widths)).items()}
        self.heads["teacher"].requires_grad_(False)
        sources = {role: HandNetwork(self.given[role], head) for role, head in self.heads.items()}
        return Cast(Task(), self.method.roles, sources, {role: {"classifier": "classifier"} for role in sources})
