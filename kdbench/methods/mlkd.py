"""Multi-level logit distillation.

Paper: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023: instance, batch and class level at several
temperatures, on a weak (the batch as it is) and a strong view that student and teacher share.
Deviations: ``faithful=code`` (default, the release behind the published numbers) keeps what the release does against
its own intention: masks that only scale a mean, weak logits in the strong instance term at temperatures 2 and 6, batch
and class terms of the strong view left out. ``faithful=paper`` undoes these three; the paper's own
text could not be read, so the masks and their place are those that the release prepares. The strong view is RandAugment
of one strength on the weak view's crop; the release crops anew, draws strengths and cuts out. ``preset=paper`` has its
schedules: same-family pairs at 0.025, most others for 480 or 960 epochs, with the decay of 240.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench import Context, Logits, Method, Need, Signals, Views
from kdbench.functional.categorical import check_categorical
from kdbench.functional.mlkd import mlkd_losses
from kdbench.functional.numerics import Faithful


class MLKD(Method):
    """Aligns single predictions, relations of samples and relations of classes, on two views.

    Args:
        temperatures: Divide both logits, each in turn.
        share: Of rows and classes that the masks keep, those in which the teacher is least confident.
        faithful: ``code`` or ``paper``.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits),)
    requires: ClassVar[frozenset[str]] = frozenset({"single_label", "strong_view"})
    over_batch: ClassVar[bool] = True

    def __init__(
        self,
        temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (2.0, 3.0, 4.0, 5.0, 6.0),
        share: Annotated[float, Field(gt=0, le=1)] = 0.5,
        faithful: Faithful = "code",
    ) -> None:
        super().__init__()
        self.temperatures = temperatures
        self.share = share
        self.faithful = faithful

    def build(self, probe: Signals) -> None:
        """Keeps the task's strong augmentation."""
        self.strong = probe.cast.task.ops()["strong"]

    def views(self, views: Views, ctx: Context) -> Views:
        """Adds ``strong``, one batch for student and teacher."""
        main = views["student"]["main"]
        strong = main.with_inputs(self.strong(main.inputs, ctx.generator("strong")))
        return {role: {**batches, "strong": strong} for role, batches in views.items()}

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``instance``, ``batch``, ``class`` and ``strong``, the student's supervised loss on that view."""
        (student, teacher), strong = signals.pair("logits"), signals.pair("logits", "strong")
        check_categorical(student.law, "MLKD")
        levels = mlkd_losses(
            (student.rows(), teacher.rows()),
            (strong[0].rows(), strong[1].rows()),
            self.temperatures,
            share=self.share,
            faithful=self.faithful,
            weight=student.row_weight(),
        )
        supervised = signals.supervised("student", "strong")
        return {"instance": levels.instance, "batch": levels.batch, "class": levels.classes, "strong": supervised}
