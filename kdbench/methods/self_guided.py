"""Generations of self-distillation under ground-truth targets.

Paper: Borup, Andersen, "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
Self-Distillation", NeurIPS 2021; the deep loss as in the authors' code.
Deviations: squared errors are summed, not averaged, over classes, so that the step does not shrink with their number;
the code's penalty on norms of weights is left to the optimizer's weight decay; every generation starts from the same
initial weights. The closed-form ``alpha`` needs a fit to the previous predictions alone and held-out labels at every
step: a network would train twice a generation, on data kept from it, so ``alpha`` is a number here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from kdbench import STUDENT, Context, Logits, Method, Need, Role, Signals, Stage
from kdbench.functional.categorical import check_categorical
from kdbench.functional.self_guided import self_guided_loss

_FIRST = "generation_0"


class SelfGuided(Method):
    """Each generation learns from the labels and from the generation before; the first from the labels alone.

    Args:
        generations: Distilled generations after the first; each is a fit of full length.
        alpha: Weight of the labels.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "teacher": Role("frozen", init="student", grad="none")}

    def __init__(self, generations: PositiveInt = 2, alpha: Annotated[float, Field(ge=0, le=1)] = 0.6) -> None:
        super().__init__()
        self.generations = generations
        self.alpha = alpha
        self.first = False

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Notes whether this generation has a teacher."""
        self.first = stage.name == _FIRST

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``self_guided``."""
        student = signals.feature("logits", "student")
        assert isinstance(student, Logits)
        check_categorical(student.law, "SelfGuided")
        teacher = None
        if not self.first:
            answer = signals.feature("logits", "teacher")
            assert isinstance(answer, Logits)
            teacher = answer.rows()
        loss = self_guided_loss(student.rows(), student.labels(), teacher, self.alpha, weight=student.row_weight())
        return {"self_guided": loss}

    def stages(self) -> tuple[Stage, ...]:
        """Returns the first fit and one a generation, each with the student before it as its teacher."""
        own = ("self_guided",)  # the labels are in it, so the supervised term stays out
        later = (
            Stage(f"generation_{i + 1}", terms=own, roles={"teacher": "student"}, fresh=True)
            for i in range(self.generations)
        )
        return Stage(_FIRST, terms=own), *later
