"""Differentiable quantization: points that are learned for the weights of a trained student.

Paper: Polino, Pascanu, Alistarh, "Model compression via distillation and quantization", ICLR 2018.
The weights of the trained float student stay as they are, and of each tensor the points to which they are quantised are
learned, from its quantiles on: a point's gradient is the sum of those of its weights, each times the width of its
bucket. The loss is the paper's distillation loss with that float student as teacher, or under ``quant.teacher=teacher``
with the pair's. Points are shared among tensors by the norms of their gradients before they are learned. Deviations:
these norms are of one batch, in eval mode, where the authors' code takes five; the points' optimizer is Adam, as the
authors' SGD at 1e-5 to 1e-6 is for many more steps. Running statistics go on, as in the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from kdbench import STUDENT, Artifact, Context, Logits, Need, Role, Signals, Stage, State, Values
from kdbench.base.weights import load_plain
from kdbench.functional.kd import kd_loss
from kdbench.functional.quantize import Scaling, share_points
from kdbench.quant.post_training import FLOAT
from kdbench.quant.weights import Bits, Bucket, Learned, Scheme, WeightQuantization, Which, left, quantizers
from kdbench.signals import total


class DifferentiableQuantization(WeightQuantization):
    """Learned points for the weights of a trained student.

    Args:
        bits: Of a weight's index, on average over tensors.
        bucket: Consecutive weights of a tensor that share a range, which costs two floats; null: all of it.
        scaling: The range: from the smallest to the largest weight, or as far to both sides of zero.
        share: Shares the points among tensors by the norms of their gradients; false gives each tensor as many.
        teacher: Whose predictions are distilled: the float student's, or the pair's teacher's.
        temperature: Of the distillation.
        epochs: Length of the training of the points as a share of the configured epochs, on top of the student's own.
        tensors: Every parameter, biases and normalisation among them, or those of two axes and more.
        skip_ends: Leaves the first and the last of these tensors in floating point.
    """

    twin = "own_float"
    roles: ClassVar[Mapping[str, Role]] = {
        "student": STUDENT,
        "float": FLOAT,
        "guide": Role("frozen", side="teacher", init="trained", grad="none"),
    }
    needs: ClassVar[tuple[Need, ...]] = (Need("logits", (Logits, Values), ("student", "float", "guide"), many=True),)

    def __init__(
        self,
        bits: Bits = 4,
        bucket: Bucket = 256,
        scaling: Scaling = "linear",
        share: bool = True,
        teacher: Literal["student", "teacher"] = "student",
        temperature: PositiveFloat = 2.0,
        epochs: PositiveFloat = 0.25,
        tensors: Which = "all",
        skip_ends: bool = False,
    ) -> None:
        super().__init__(Scheme(bits, bucket, scaling, tensors, skip_ends))
        self.share, self.temperature, self.epochs = share, temperature, epochs
        self.teacher = "float" if teacher == "student" else "guide"

    def stages(self) -> tuple[Stage, ...]:
        """The points alone train."""
        return (Stage("points", self.epochs, ("quant_task", "quant_kd"), ("student.*.points",), alone=True),)

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Takes the trained weights and gives every tensor its points."""
        how, student = self.scheme, probe.cast.model("student")
        if next(quantizers(student), None) is not None:
            return
        load_plain(student, probe.cast.model("float").state_dict())
        self.unfit = how.unfit(student)
        levels = dict(zip(how.names(student), self._levels(probe, student), strict=True))
        how.put_on(student, lambda name, weight: Learned(levels[name], weight, how.bucket, how.scaling))
        for _, _, weight in quantizers(student):
            weight.requires_grad_(False)
        self.names = student.state_dict().keys()

    def _levels(self, probe: Signals, student: nn.Module) -> list[int]:
        """Returns how many points each tensor has."""
        chosen = [student.get_parameter(name) for name in self.scheme.names(student)]
        if not self.share:
            return [2**self.scheme.bits] * len(chosen)
        with torch.enable_grad():
            loss = probe.supervised("student")
            grads = torch.autograd.grad(loss, chosen, allow_unused=True) if loss.requires_grad else [None] * len(chosen)
        norms = [0.0 if grad is None else float(grad.norm()) for grad in grads]
        return share_points(norms, 2**self.scheme.bits)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``quant_task``, the student's supervised loss, and ``quant_kd``."""
        heads = zip(*(signals.features("logits", role) for role in ("student", self.teacher)), strict=True)
        return {"quant_task": signals.supervised(), "quant_kd": total(self._distance(s, t) for s, t in heads)}

    def _distance(self, student: Any, teacher: Any) -> Tensor:
        weight = student.row_weight()
        return kd_loss(student.rows(), teacher.rows(), self.temperature, law=student.law, weight=weight)

    def after_step(self, signals: Signals, state: State) -> None:
        """Puts the points into order."""
        for _, quantizer, _ in quantizers(signals.cast.model("student")):
            if isinstance(quantizer, Learned):
                quantizer.sort()

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns the quantised student, and the float one."""
        return left(models["student"], self.names, models["float"])
