"""Label assisted distillation.

Paper: Qiu, Chen, Li, Wan, Xue, Pu, "Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation
Approach for Semantic Segmentation", ECCV 2024: the teacher, a network of the student's own architecture, reads the
image and a channel of noised codes for its true classes; two draws of the codes go through it side by side and should
give one answer. It then teaches a student that reads the image alone.

The term ``lad`` is, while the teacher trains, the supervised loss of the second draw and the consistency of both; of
the student it is the distance to the teacher, which reads fixed codes with a little noise. The record holds the scores
of the teacher without labels (``teacher``), with them (``teacher_privileged``) and with random codes
(``teacher_random_codes``), and those of its network trained without the channel (``teacher_plain``).

``faithful=code`` has the constants of the released code: codes drawn from a normal law for every image, consistency 5.
With them small networks learn to ignore the channel; by default codes are fixed and jittered for every image, and
consistency is 0.5. The scale is theirs for images of unit variance.
Deviations: the student has no channel where theirs reads zeros. Its auxiliary head, where it has one, keeps its weight;
theirs falls from 0.4 to 0.02. Positions of the ignored label have a code of their own and no part in the losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from kdbench import Artifact, Asked, Batch, Context, Logits, Method, Need, Signals, Task, Views
from kdbench.base import rng
from kdbench.functional.cwd import channel_wise_loss
from kdbench.functional.dist import inter_class_loss, intra_class_loss
from kdbench.functional.kd import kd_loss
from kdbench.functional.lad import class_codes, label_channel, path_consistency_loss

Codes = Literal["jitter", "random", "fixed"]

#: Of each distance: temperature, and weight in the authors' code (cwd) or in their papers.
DISTANCES = {"cwd": (4.0, 3.0), "kd": (1.0, 1.0), "dist": (1.0, 1.0)}
#: Codes and weight of the consistency, adapted to small networks and as released.
SETTINGS: dict[str, tuple[Codes, float]] = {"adapted": ("jitter", 0.5), "code": ("random", 5.0)}
#: Pixel noise where the teacher teaches.
TAUGHT_NOISE = 0.02
#: Temperature of the consistency.
TEMPERATURE = 4.0


class LAD(Method):
    """A teacher that reads noised labels beside the image.

    Args:
        distil: Distance of the student to the teacher: ``cwd``, ``kd`` or ``dist``.
        temperature: Of that distance; None for 4 (cwd) or 1.
        weight: Of that distance; None for 3 (cwd) or 1.
        teacher: Whose architecture the teacher has: the ``student``'s, or that of the ``pair``'s teacher.
        faithful: ``adapted`` or ``code``, see the head of this file.
        codes: Of the classes while the teacher trains: ``fixed``, ``jitter`` (fixed, plus a normal number for every
            image) or ``random``; None as ``faithful`` says.
        jitter: Standard deviation of that number.
        noise: Standard deviation of the noise of each pixel, in codes.
        scale: Of the channel.
        consistency: Weight of the consistency; None as ``faithful`` says.
        dual: False leaves out the second path, and with it the consistency.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits), Need("scores", Logits, ("student",)))
    requires: ClassVar[frozenset[str]] = frozenset({"dense_label", "label_as_input"})
    takes_part: ClassVar[frozenset[str]] = frozenset({"teacher", "student"})
    trainings: ClassVar[tuple[Asked, ...]] = (Asked("plain", "plain", scored="teacher_plain"),)
    over_batch: ClassVar[bool] = True  # DIST relates rows

    def __init__(
        self,
        distil: Literal["cwd", "kd", "dist"] = "cwd",
        temperature: PositiveFloat | None = None,
        weight: NonNegativeFloat | None = None,
        teacher: Literal["student", "pair"] = "student",
        faithful: Literal["adapted", "code"] = "adapted",
        codes: Codes | None = None,
        jitter: NonNegativeFloat = 0.4,
        noise: NonNegativeFloat = 0.03,
        scale: PositiveFloat = 1.33,
        consistency: NonNegativeFloat | None = None,
        dual: bool = True,
    ) -> None:
        super().__init__()
        self.distil = distil
        self.temperature = DISTANCES[distil][0] if temperature is None else temperature
        self.weight = DISTANCES[distil][1] if weight is None else weight
        self.side = "teacher" if teacher == "pair" else "student"
        self.codes = SETTINGS[faithful][0] if codes is None else codes
        self.jitter, self.noise, self.scale = jitter, noise, scale
        self.consistency = SETTINGS[faithful][1] if consistency is None else consistency
        self.dual = dual

    def sides(self, pair: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
        """Gives the teacher a label channel; ``plain`` is what it is without."""
        plain = pair[self.side]
        told = {**plain, "architecture": task.ops()["label_as_input"](plain["architecture"])}
        return {**pair, "teacher": told, "plain": plain}

    def build(self, probe: Signals) -> None:
        """Counts the classes and keeps what the task says of labels."""
        self.classes = probe.feature("scores", "student").values.shape[1]
        self.labels = probe.cast.task.ops()["dense_label"]

    def views(self, views: Views, ctx: Context) -> Views:
        """Tells the classes to the teacher: by two draws while it trains, by fixed codes while it teaches."""
        if ctx.side == "teacher":
            batch = views["student"]["main"]
            paths = ("main", "second") if self.dual else ("main",)
            views["student"] |= {path: self._told(batch, self.codes, self.noise, ctx, path) for path in paths}
        else:
            batch = views["teacher"]["main"]
            views["teacher"] = {"main": self._told(batch, "fixed", TAUGHT_NOISE, ctx, "taught")}
        return views

    def _told(self, batch: Batch, codes: Codes, noise: float, ctx: Context, name: str) -> Batch:
        """Returns a batch with a label channel that is drawn under a name of this step, on the device of the labels."""
        labels: Tensor = self.labels(batch)
        draw = torch.Generator(labels.device).manual_seed(ctx.generator("lad", name).initial_seed())
        pixels = noise * torch.randn(labels.shape, generator=draw, device=labels.device)
        numbers = torch.randn(len(labels), self.classes + 1, generator=draw, device=labels.device)
        return self._with_channel(batch, self._table(codes, numbers), pixels)

    def _table(self, codes: Codes, numbers: Tensor) -> Tensor:
        """Returns the codes of each sample (B, C + 1), of normal numbers of that shape."""
        fixed = class_codes(self.classes).to(numbers)
        return numbers if codes == "random" else fixed + (self.jitter if codes == "jitter" else 0.0) * numbers

    def _with_channel(self, batch: Batch, table: Tensor, pixels: Tensor | None = None) -> Batch:
        channel = label_channel(self.labels(batch), table, pixels, self.scale)
        return batch.with_inputs(torch.cat([batch.inputs, channel.to(batch.inputs.dtype)], dim=1))

    def told(self, batch: Batch, codes: Codes = "fixed") -> Batch:
        """Returns a batch with the label channel without noise; what is random of a sample is always the same."""
        uniform = rng.uniform(0, "lad", index=batch.ids.cpu().numpy(), count=self.classes + 1)
        numbers = torch.special.ndtri(torch.from_numpy(uniform)).float().to(batch.ids.device)
        return self._with_channel(batch, self._table(codes, numbers))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``lad``: of the teacher its second path and the consistency, of the student the distance."""
        return {"lad": self._paths(signals) if ctx.side == "teacher" else self.weight * self._distance(signals)}

    def _paths(self, signals: Signals) -> Tensor:
        first: Any = signals.feature("scores", "student")
        if not self.dual:
            return 0.0 * first.values.sum()
        second = signals.feature("scores", "student", "second")
        apart = path_consistency_loss(first.values, second.values, TEMPERATURE, first.mask)
        return signals.supervised(view="second") + self.consistency * apart

    def _distance(self, signals: Signals) -> Tensor:
        student, teacher = signals.pair("logits")
        if self.distil == "cwd":
            return channel_wise_loss(student.values, teacher.values, self.temperature, student.mask)
        rows, weight = (student.rows(), teacher.rows(), self.temperature), student.row_weight()
        if self.distil == "kd":
            return kd_loss(*rows, weight=weight)
        return inter_class_loss(*rows, weight=weight) + intra_class_loss(*rows)

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """A teacher is scored as a student reads, and beside that with exact and with random codes."""
        found = super().artifacts(models)
        if "teacher" in models:
            return found
        random: Callable[[Batch], Batch] = functools.partial(self.told, codes="random")
        told = {"privileged": self.told, "random_codes": random}
        return found | {name: Artifact(models["student"], view) for name, view in told.items()}
