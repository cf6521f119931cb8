"""What the learned augmentations have in common.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023: an augmentor g
learns inputs on which teacher T and student S disagree, while the teacher does not change its mind about them.

With x~ = g(x) and D(p, q) the KL divergence of class scores, the student descends on ``L_st = D(T(x~), S(x~))`` (term
``hard``) beside all that the run's method and labels ask of the inputs as they are; the augmentor descends on
``keep * L_tt - seek * L_st`` with ``L_tt = D(T(x), T(x~))`` (terms ``keep`` and ``seek``), through the frozen teacher
and the student in eval mode. Turns: :func:`~kdbench.functional.hard.next_turn`; the student steps on every batch, the
augmentor before it while its phase lasts.

``fidelity: approximate``: the paper's abstract could be read, its equations and values could not, and its code was not
released. The thresholds are those that reproduced its toy experiment.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench.base.collectives import average
from kdbench.base.instantiate import check
from kdbench.features import Feature, Logits
from kdbench.functional.hard import next_turn
from kdbench.functional.kd import kd_loss
from kdbench.needs import STUDENT, Need, Role, State, Update, Views
from kdbench.plugin import Plugin
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Turns:
    """When the augmentor and the student take turns.

    Attributes:
        above: Disagreement, of teacher and student or of the teacher with itself, that ends the augmentor's phase.
        below: Disagreement of teacher and student on augmented inputs under which the next one begins.
        most: Steps of a phase.
    """

    above: PositiveFloat = 0.6
    below: NonNegativeFloat = 0.3
    most: PositiveInt = 20


#: Begins the flag of a run whose augmentor took no step.
STILL = "augmentor_never_stepped"
#: The view that teacher and student read beside ``main``.
VIEW = "augmented"


def unmoved(feature: Feature) -> Feature:
    """Carries features of samples that stay where they are."""
    return feature


class HARD(Plugin):
    """Base of augmentations that learn what teacher and student disagree on.

    Every role reads the view ``augmented`` beside its own, so that it composes with any method: the method's terms, and
    the labels, are of the inputs as they are.

    Args:
        temperature: Divides the class scores of all three terms.
        turns: Options of :class:`Turns`.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    roles: ClassVar[Mapping[str, Role]] = {
        "student": STUDENT,
        "teacher": Role("frozen", side="teacher", init="trained", grad="input"),
    }
    fidelity = "approximate"
    exploring: Tensor
    taken: Tensor
    steps: Tensor
    least: Tensor

    def __init__(self, temperature: PositiveFloat = 1.0, turns: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.turns = Turns(**check("augment.turns", Turns, turns or {}))
        self.register_buffer("exploring", torch.tensor(False))
        self.register_buffer("taken", torch.tensor(0))
        # Steps of the augmentor, and the least disagreement of teacher and student, for what is said at the end.
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("least", torch.tensor(torch.inf))
        self._carry: Carry = unmoved
        self._seen: dict[str, Tensor] = {"stray": torch.tensor(0.0)}
        self._due = (-1, False)

    @abstractmethod
    def augment(self, batch: Batch, ctx: Context) -> tuple[Batch, Carry]:
        """Returns the augmented batch, on the graph of what is learned, and what carries features along."""

    def views(self, views: Views, ctx: Context) -> Views:
        """Adds the augmented view of what the teacher reads; the student's update does not differentiate it."""
        if not any(map(ctx.wants, ("hard", "seek", "keep"))):
            return views
        with torch.set_grad_enabled(torch.is_grad_enabled() and (ctx.wants("seek") or ctx.wants("keep"))):
            made, self._carry = self.augment(views["teacher"]["main"], ctx)
        return {role: {**own, VIEW: made} for role, own in views.items()}

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``hard`` of the student's update, ``seek`` and ``keep`` of the augmentor's."""
        student, teacher = signals.pair("logits", VIEW)
        apart = self._apart(student, teacher)
        terms = {name: apart for name in ("hard", "seek") if ctx.wants(name)}
        self._seen["apart"] = apart.detach()
        if ctx.wants("keep"):
            before: Any = self._carry(signals.feature("logits", "teacher"))
            terms["keep"] = self._apart(teacher, replace(before, mask=teacher.mask))
            self._seen["stray"] = terms["keep"].detach()
        return terms

    def _apart(self, student: Logits, teacher: Logits) -> Tensor:
        rows = student.rows(), teacher.rows(), self.temperature
        return kd_loss(*rows, law=student.law, weight=student.row_weight())

    def updates(self) -> tuple[Update, ...]:
        """First the augmentor while its phase lasts, then the student on all that nobody else asks of it."""
        ascent = Update({"seek": -1.0, "keep": 1.0}, ("own",), when=self.explores, modes={"student": "eval"})
        return ascent, Update(None, ("student",), group=1)

    def explores(self, state: State) -> bool:
        """Says whether the augmentor steps; alike for all batches that share a step."""
        if self._due[0] != state.step:
            self._due = (state.step, bool(self.exploring))
        return self._due[1]

    def after_step(self, signals: Signals, state: State) -> None:
        """Settles whose turn is next, by what all processes have seen."""
        exploring = self._due[1]
        apart, stray = map(float, average([self._seen["apart"], self._seen["stray"].to(self._seen["apart"])]))
        exploring, taken = next_turn(exploring, int(self.taken) + exploring, apart, stray, **asdict(self.turns))
        self.steps += self._due[1]
        self.least.fill_(min(float(self.least), apart))
        self.exploring.fill_(exploring)
        self.taken.fill_(taken)

    def notes(self) -> tuple[str, ...]:
        """Says where the augmentor never had its turn, so that what it draws is what it began with."""
        if self.steps or not self.least.isfinite():
            return ()
        least, below = float(self.least), self.turns.below
        return (
            f"{STILL}: disagreement {least:.3g} at the least, its phases begin under augment.turns.below={below:g}",
        )

    def pictures(self, signals: Signals, rows: Sequence[Mapping[str, float]]) -> Mapping[str, Image]:
        """Draws samples and their augmentations with what both networks say, and how the learned numbers grew."""
        from kdbench.augment.picture import growth

        models: dict[str, nn.Module] = {name: signals.cast.model(name) for name in ("teacher", "student")}
        views = {"original": signals.batch("teacher"), VIEW: signals.batch("teacher", VIEW)}
        named = [column for column in (rows[-1] if rows else ()) if column.partition("/")[2] in self.readings()]
        return {"views": signals.cast.task.side_by_side(views, models), "growth": growth(rows, named)}


class Gaussian(HARD):
    """A learned augmentation by numbers of mean zero, whose standard deviations it learns, drawn for each sample.

    Args:
        start: First natural logarithm of the standard deviations.
    """

    def __init__(
        self, start: float = -3.0, temperature: PositiveFloat = 1.0, turns: dict[str, Any] | None = None
    ) -> None:
        super().__init__(temperature, turns)
        self.start = start
        self.names: tuple[str, ...] = ()

    @abstractmethod
    def prepare(self, probe: Signals) -> tuple[str, ...]:
        """Keeps what it needs of the task and returns the names of the numbers."""

    @abstractmethod
    def vary(self, batch: Batch, numbers: Tensor, ctx: Context) -> tuple[Batch, Carry]:
        """Augments a batch by numbers ``(B, P)``; as they become zero it stays as it is."""

    def build(self, probe: Signals) -> None:
        """Counts the numbers."""
        self.names = self.prepare(probe)
        self.log_std = nn.Parameter(torch.full((len(self.names),), self.start))

    def augment(self, batch: Batch, ctx: Context) -> tuple[Batch, Carry]:
        """Draws the numbers of this step."""
        drawn = torch.randn(len(batch), len(self.names), generator=ctx.generator("hard"))
        return self.vary(batch, self.log_std.exp() * drawn.to(self.log_std), ctx)

    def readings(self) -> Mapping[str, float]:
        """Returns the standard deviation of every number."""
        return {f"std.{n}": value for n, value in zip(self.names, self.log_std.detach().exp().tolist(), strict=True)}
