"""Self-supervision knowledge distillation.

Paper: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020: a head on the frozen teacher first learns
to find the sample that a rotated one was made from; its similarities are then transferred, beside the classes of the
samples and of their rotations.
Deviations: samples and rotations pass through each network one after the other, not in one batch, so that batch
statistics are those of either; the authors crop after turning and do not flip, here the batch is turned as it was
augmented (``data.transforms.flip=false`` for theirs). The head's stage takes a quarter of the configured epochs (60 of
240), under the run's own schedule. Equations as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench import Batch, Context, KDBenchError, Logits, Method, Need, Signals, Stage, Vector, Views
from kdbench.functional.kd import kd_loss
from kdbench.functional.sskd import contrast_loss, contrast_similarities, contrast_transfer_loss, select_transfer

Share = Annotated[float, Field(ge=0, le=1)]


class SSKD(Method):
    """Reads each batch and its three rotations.

    Args:
        temperature: Divides the logits of both classification terms.
        ssl_temperature: Divides the contrast similarities.
        keep_rotated: Share of the teacher's wrong predictions on rotations that is transferred; below 1 it needs the
            true classes.
        keep_ssl: Share of the teacher's wrong contrast predictions that is transferred.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits), Need("pooled", Vector))
    requires: ClassVar[frozenset[str]] = frozenset({"rotate"})
    over_batch: ClassVar[bool] = True

    def __init__(
        self,
        temperature: PositiveFloat = 4.0,
        ssl_temperature: PositiveFloat = 0.5,
        keep_rotated: Share = 1.0,
        keep_ssl: Share = 0.75,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.ssl_temperature = ssl_temperature
        self.keep_rotated = keep_rotated
        self.keep_ssl = keep_ssl

    def build(self, probe: Signals) -> None:
        """Makes the heads of both and keeps the task's rotation."""
        self.rotate = probe.cast.task.ops()["rotate"]
        student, teacher = (feature.values.shape[1] for feature in probe.pair("pooled"))
        self.student_head, self.teacher_head = _head(student), _head(teacher)

    def stages(self) -> tuple[Stage, ...]:
        """First the teacher's head, then the student."""
        return (
            Stage("head", 0.25, terms=("ssl_teacher",), trains=("own.teacher_head*",)),
            Stage("distil", terms=("task", "kd", "kd_rotated", "ssl")),
        )

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Freezes the teacher's head after its stage; it has no layer that eval mode would change."""
        self.teacher_head.requires_grad_(stage.name == "head")

    def views(self, views: Views, ctx: Context) -> Views:
        """Adds ``rotated``: three times the samples, by one, two and three quarters."""
        made: dict[int, Batch] = {}
        for batches in views.values():
            main = batches["main"]
            if id(main) not in made:
                made[id(main)] = self._rotated(main)
            batches["rotated"] = made[id(main)]
        return views

    def _rotated(self, batch: Batch) -> Batch:
        inputs = [self.rotate(batch.inputs, k) for k in (1, 2, 3)]
        rest = {n: _thrice(getattr(batch, n)) for n in ("targets", "ids", "supervised", "distilled")}
        return batch.with_inputs(_joined(inputs), **rest)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ssl_teacher`` of the first stage, ``kd``, ``kd_rotated`` and ``ssl`` of the second."""
        terms: dict[str, Tensor] = {}
        if ctx.wants("ssl_teacher"):
            terms["ssl_teacher"] = contrast_loss(*self._contrast(signals, "teacher"))
        if ctx.wants("kd"):
            terms["kd"] = self._kd(signals, "main", 1.0)
        if ctx.wants("kd_rotated"):
            terms["kd_rotated"] = self._kd(signals, "rotated", self.keep_rotated)
        if ctx.wants("ssl"):
            student, origin = self._contrast(signals, "student")
            with torch.no_grad():
                teacher, _ = self._contrast(signals, "teacher")
            terms["ssl"] = contrast_transfer_loss(student, teacher, origin, self.ssl_temperature, self.keep_ssl)
        return terms

    def _kd(self, signals: Signals, view: str, keep: float) -> Tensor:
        student, teacher = signals.pair("logits", view)
        weight = student.row_weight()
        if keep < 1:
            chosen = select_transfer(teacher.rows(), teacher.labels(), keep)
            weight = chosen if weight is None else chosen * weight
        return kd_loss(student.rows(), teacher.rows(), self.temperature, law=student.law, weight=weight)

    def _contrast(self, signals: Signals, role: str) -> tuple[Tensor, Tensor]:
        """Similarities (3B, B) of rotations to samples in the space of a head, and the sample behind each rotation."""
        head = self.student_head if role == "student" else self.teacher_head
        original, rotated = (head(signals.feature("pooled", role, view).values) for view in ("main", "rotated"))
        origin = torch.arange(len(original), device=original.device).repeat(3)
        return contrast_similarities(rotated, original), origin


def _head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def _thrice(value: Any) -> Any:
    return torch.cat([value] * 3) if isinstance(value, Tensor) else value


def _joined(inputs: list[Any]) -> Tensor:
    if len({x.shape for x in inputs if isinstance(x, Tensor)}) != 1:
        raise KDBenchError(
            "sskd puts three rotations into one batch: expected tensors of one shape, as square images are"
        )
    return torch.cat(inputs)
