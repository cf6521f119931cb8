"""Learning to answer from texts that spell out how an answer is found.

Paper: Zhang, Bjerva, Biswas, "Scaling Reasoning can Improve Factuality in Large Language Models", arXiv
2505.11140, 2025. Equation: the negative log-likelihood of reasoning traces that a teacher wrote, ``-log q(y)``, in
place of that of answers alone; traces may be kept only where their answer is right.
Deviations: the paper's teachers are prompted with paths of a knowledge graph; here the teacher has learned from such
paths, and in GraphTraces the graph itself writes them. Only the abstract of the paper could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from torch import Tensor

from kdbench import Context, Method, Signals
from kdbench.needs import STUDENT, Role, Views
from kdbench.task import Batch, Task

#: Views of training samples.
TRAINING = ("main", "train")


class Traces(Method):
    """The supervised loss on traces that the teacher has written (``teacher.corpus``).

    Args:
        checked: Whether only those are learned from whose answer is right.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    requires: ClassVar[frozenset[str]] = frozenset({"writes", "judges", "traces"})
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT}
    corpus: ClassVar[bool] = True

    def __init__(self, checked: bool = False) -> None:
        super().__init__()
        self.checked = checked

    def chosen(self, corpus: Mapping[str, Tensor], task: Task, seed: int) -> Tensor | None:
        """Returns the right ones, ``(N,)``, or None for all."""
        if not self.checked:
            return None
        found: Tensor = task.ops()["judge"](corpus)
        return found


class GraphTraces(Method):
    """The supervised loss on the true trace of each training sample, in place of its answer; no teacher is read."""

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    requires: ClassVar[frozenset[str]] = frozenset({"traces"})
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT}
    trace: Callable[[Batch], Batch]

    def build(self, probe: Signals) -> None:
        """Keeps how the task writes a trace."""
        self.trace = probe.cast.task.ops()["trace"]

    def views(self, views: Views, ctx: Context) -> Views:
        """Gives the student traces in place of answers."""
        read = {name: self.trace(batch) if name in TRAINING else batch for name, batch in views["student"].items()}
        return {**views, "student": read}
