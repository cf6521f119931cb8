"""Unlearning with two teachers, one that preserves and one that destroys.

Paper: Sinha, Mandal, Kankanhalli, "Distill to Delete: Unlearning in Graph Networks with Knowledge Distillation", 2023:
``alpha response + (1 - alpha) feature``, where the student starts from the trained network; of what is kept it is held
to the trained network (preserver), of what is to be forgotten to an untrained one (destroyer), by KL of predictions and
by squared error of features.
Deviations, for which the fidelity is approximate: alpha is the two weights; features are those of samples (of an edge,
both of its ends), not of all nodes; which further negatives and how many steps the paper takes could not be read: a
fifth of the epochs, on all samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Role, Signals, Stage, Vector
from kdbench.functional.d2dgn import unlearning_feature_loss, unlearning_response_loss

ALL = ("student", "teacher", "destroyer")


class D2DGN(Method):
    """Starts as the trained network, and forgets some samples by learning what an untrained one says of them.

    Args:
        length: Share of the epochs that it takes.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, ALL), Need("feature", Vector, ALL))
    requires: ClassVar[frozenset[str]] = frozenset({"forgets"})
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    over_batch: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "student": Role("train", init="trained", product="teacher"),
        "teacher": Method.roles["teacher"],
        "destroyer": Role("frozen", side="teacher", grad="none"),
    }

    def __init__(self, length: Annotated[float, Field(gt=0, le=1)] = 0.2) -> None:
        super().__init__()
        self.length = length

    def stages(self) -> tuple[Stage, ...]:
        """One, shorter than a training."""
        return (Stage("unlearn", self.length),)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``response`` and ``feature``."""
        forgotten: Tensor = signals.cast.task.ops()["forgotten"](signals.batch())
        # All samples: the task takes what is to be forgotten from other methods by the mask.
        student, teacher, destroyer = (replace(cast(Logits, signals.feature("logits", r)), mask=None) for r in ALL)
        rows = (student.rows(), teacher.rows(), destroyer.rows())
        terms = {"response": unlearning_response_loss(*rows, forgotten[student.sample()], student.law)}
        if ctx.wants("feature"):
            ours, knows, blank = (signals.feature("feature", role).rows() for role in ALL)
            terms["feature"] = unlearning_feature_loss(ours, knows, blank, forgotten)
        return terms
