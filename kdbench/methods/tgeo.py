"""Distillation with a learned ratio of teacher and truth for each sample.

Paper: Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024.
Inner problem, of the student: ``mean_x [a(x) T^2 KL(p_t || p_s) + (1 - a(x)) CE]`` with ``a = sigmoid(MLP(state))``;
outer problem, of the MLP: the supervised loss of the stepped student on the ``meta`` cut of the training samples, which
the inner problem then goes without (``control: learned``). State and MLP as in the authors' code; the gradient of the
MLP goes through one plain gradient step of the student, of second order.
Deviations: in the released code no gradient reaches the MLP, whose ratio stays that of its random initial weights
(``control: frozen_random``), and cross-entropy is applied to probabilities; neither is done here. The step of the MLP's
optimizer is chosen here for the same reason. The paper does not say how its bilevel problem is solved, so the fidelity
is approximate.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Context, Logits, Method, Need, Signals, Stage, State, Update
from kdbench.functional.categorical import check_categorical
from kdbench.functional.numerics import upcast
from kdbench.functional.tgeo import class_sums, fused_loss, trilateral_state


class TGeo(Method):
    """A small network weighs, for each sample, the teacher against the label.

    Args:
        temperature: Of the distillation loss.
        control: ``learned`` by bilevel steps, ``frozen_random`` (never trained), or ``fixed`` (one ratio for all).
        ratio: That of ``fixed``.
        mean: The teacher's mean prediction of a class is over all samples seen so far (``running``, as in the paper) or
            over the batch (as in the authors' code).
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label", "meta"})
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"
    over_batch: ClassVar[bool] = True
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        temperature: PositiveFloat = 1.5,
        control: Literal["learned", "frozen_random", "fixed"] = "learned",
        ratio: Annotated[float, Field(ge=0, le=1)] = 0.5,
        mean: Literal["running", "batch"] = "running",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.control = control
        self.constant = ratio
        self.mean = mean

    def build(self, probe: Signals) -> None:
        """Makes the controller and the sums of the teacher's predictions by class."""
        if self.control == "fixed":
            return
        logits = probe.feature("logits", "student")
        assert isinstance(logits, Logits)
        classes = logits.values.shape[logits.class_dim]
        self.controller = nn.Sequential(
            nn.Linear(9 * classes, 32), nn.LeakyReLU(), nn.Linear(32, 16), nn.LeakyReLU(), nn.Linear(16, 1)
        ).requires_grad_(self.control == "learned")
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes))

    def ratio(self, student: Logits, teacher: Logits) -> Tensor | float:
        """Returns the ratio of each row, on the graph of the controller and not on the student's."""
        if self.control == "fixed":
            return self.constant
        labels = student.labels()
        p_s, p_t = (upcast(f.rows().detach()).softmax(dim=1) for f in (student, teacher))
        sums, counts = class_sums(p_t, labels)
        mean = (self.sums + sums)[labels] / (self.counts + counts)[labels, None]
        ratio: Tensor = self.controller(trilateral_state(p_s, p_t, mean, labels)).squeeze(1).sigmoid()
        return upcast(ratio)

    def inner(self, signals: Signals, view: str) -> Tensor:
        """Returns the loss of the student in a view."""
        student, teacher = signals.pair("logits", view)
        check_categorical(student.law, "TGeo")
        return fused_loss(
            student.rows(),
            teacher.rows(),
            student.labels(),
            self.ratio(student, teacher),
            self.temperature,
            weight=student.row_weight(),
        )

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``inner`` of the student on the training batch and ``outer`` of the controller on the meta batch."""
        terms = {}
        if ctx.wants("inner"):
            terms["inner"] = self.inner(signals, "main")
        if ctx.wants("outer"):
            stepped = ctx.virtual_step(signals, self.inner(signals, "train"))
            terms["outer"] = stepped.supervised("student")
        return terms

    def updates(self) -> tuple[Update, ...]:
        """Steps the controller, where it is learned, then the student."""
        outer = Update({"outer": 1.0}, ("own",), batch="meta", modes={"student": "eval"})
        inner = Update({"inner": 1.0}, ("student",), group=1)
        return (outer, inner) if self.control == "learned" else (inner,)

    def stages(self) -> tuple[Stage, ...]:
        """Returns one fit without the supervised term, which is in the inner loss."""
        return (Stage(terms=("inner", "outer") if self.control == "learned" else ("inner",)),)

    def after_step(self, signals: Signals, state: State) -> None:
        """Adds the teacher's predictions of this batch to the sums of their classes."""
        if self.control == "fixed" or self.mean == "batch":
            return
        student, teacher = signals.pair("logits")
        sums, counts = class_sums(upcast(teacher.rows()).softmax(dim=1), student.labels())
        self.sums += sums
        self.counts += counts
