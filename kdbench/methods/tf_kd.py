"""Distillation without a stronger teacher.

Paper: Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
eq. 7 (Tf-KD_self: the student trained alone teaches a second one) and eqs. 8 and 9 (Tf-KD_reg: a teacher made by hand).
The weights of ``task`` and ``tf_kd`` are the paper's ``1 - alpha`` and ``alpha``; that of ``task.alone``, the same
supervised loss, holds while the first student of Tf-KD_self trains alone.
Deviations: ``faithful: paper`` has the factor T^2 of the usual distillation loss, which the equations leave out and the
authors' code has for Tf-KD_self; that code's ``multiplier`` belongs to the weight. The second student starts from the
initial weights of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import STUDENT, Context, Logits, Method, Need, Role, Signals, Stage
from kdbench.functional.categorical import check_categorical
from kdbench.functional.numerics import Faithful
from kdbench.functional.tf_kd import self_training_loss, virtual_teacher_loss


class TfKD(Method):
    """The student's own earlier self, or a distribution made by hand, in place of a teacher.

    Args:
        variant: ``self`` trains the student twice; ``reg`` once, and asks no network but the student.
        temperature: Softens the predictions.
        correct_prob: Of the true class in the teacher made by hand.
        faithful: ``paper``, or ``code`` for what the authors' code computes.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label"})
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "teacher": Role("frozen", init="student", grad="none")}

    def __init__(
        self,
        variant: Literal["self", "reg"] = "self",
        temperature: PositiveFloat = 20.0,
        correct_prob: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        faithful: Faithful = "paper",
    ) -> None:
        super().__init__()
        self.variant = variant
        self.temperature = temperature
        self.correct_prob = correct_prob
        self.faithful = faithful

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``tf_kd``, and ``task.alone`` of the student that trains alone."""
        terms = {}
        if ctx.wants("task.alone"):
            terms["task.alone"] = signals.supervised()
        if ctx.wants("tf_kd"):
            terms["tf_kd"] = self.distil(signals)
        return terms

    def distil(self, signals: Signals) -> Tensor:
        """Returns the loss to the earlier self or to the teacher made by hand."""
        student = signals.feature("logits", "student")
        assert isinstance(student, Logits)
        check_categorical(student.law, "TfKD")
        rows, weight = student.rows(), student.row_weight()
        if self.variant == "reg":
            return virtual_teacher_loss(
                rows, student.labels(), self.temperature, self.correct_prob, faithful=self.faithful, weight=weight
            )
        teacher = signals.feature("logits", "teacher")
        assert isinstance(teacher, Logits)
        return self_training_loss(rows, teacher.rows(), self.temperature, faithful=self.faithful, weight=weight)

    def stages(self) -> tuple[Stage, ...]:
        """Returns one fit for ``reg``; for ``self`` that of the teacher and that of the student."""
        if self.variant == "reg":
            return (Stage(terms=("task", "tf_kd")),)
        return (
            Stage("teacher", terms=("task.alone",)),
            Stage("distil", terms=("task", "tf_kd"), roles={"teacher": "student"}, fresh=True),
        )
