"""Learning from what the teacher writes and a critic lets pass.

Paper: West, Bhagavatula, Hessel, Hwang, Jiang, Le Bras, Lu, Welleck, Choi, "Symbolic Knowledge Distillation: from
General Language Models to Commonsense Models", NAACL 2022. Equation: the negative log-likelihood of those of the
teacher's texts whose critic's score passes a threshold, set by the recall of right ones among some that were checked.
Deviations: the paper's critic is a classifier (RoBERTa) that learns from texts that people have checked; here it is the
mean log-likelihood of a text's words under the teacher itself, so the checked ones, which the task judges, set its
threshold alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from kdbench import Method
from kdbench.base import rng
from kdbench.functional.symbolic import accepted
from kdbench.needs import STUDENT, Role
from kdbench.task import Task


class Symbolic(Method):
    """The supervised loss on the part of a corpus of the teacher's (``teacher.corpus``) that a critic lets pass.

    Args:
        recall: Share of the right ones among the checked texts that the critic lets pass.
        checked: Texts that are checked; all where there are fewer.
        keep: What is learned from: what the ``critic`` lets pass, as many ``random`` ones, or ``all`` that was written.
    """

    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    requires: ClassVar[frozenset[str]] = frozenset({"writes", "judges"})
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT}
    corpus: ClassVar[bool] = True

    def __init__(
        self,
        recall: Annotated[float, Field(gt=0, le=1)] = 0.5,
        checked: PositiveInt = 200,
        keep: Literal["critic", "random", "all"] = "critic",
    ) -> None:
        super().__init__()
        self.recall, self.checked, self.keep = recall, checked, keep

    def chosen(self, corpus: Mapping[str, Tensor], task: Task, seed: int) -> Tensor | None:
        """Returns what is learned from, ``(N,)``."""
        if self.keep == "all":
            return None
        scores = corpus["log_probs"] / corpus["tokens"].clamp(min=1)
        checked = torch.randperm(len(scores), generator=rng.generator(seed, "symbolic", "checked"))[: self.checked]
        right = task.ops()["judge"]({name: value[checked] for name, value in corpus.items()})
        kept = accepted(scores, checked, right, self.recall)
        if self.keep == "critic":
            return kept
        return kept[torch.randperm(len(kept), generator=rng.generator(seed, "symbolic", "random"))]
