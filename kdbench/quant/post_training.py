"""The control of quantised distillation: the student as the rest of the run trains it, quantised afterwards.

Paper: Polino, Pascanu, Alistarh, "Model compression via distillation and quantization", ICLR 2018.
"PM" in its tables, with buckets and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

from kdbench import STUDENT, Artifact, Role, Signals, Stage
from kdbench.base.weights import load_plain
from kdbench.functional.quantize import Scaling
from kdbench.quant.weights import Bits, Bucket, Fixed, Scheme, WeightQuantization, Which, left

#: The student that the rest of the run trains, in floating point.
FLOAT = Role("frozen", init="trained", grad="none", product="float")


class PostTraining(WeightQuantization):
    """The trained student quantised; nothing trains after it.

    Args:
        bits: Of a weight's index.
        bucket: Consecutive weights of a tensor that share a range, which costs two floats; null: all of it.
        points: Evenly spaced in the range, or at the quantiles of each tensor.
        scaling: The range: from the smallest to the largest weight, or as far to both sides of zero.
        tensors: Every parameter, biases and normalisation among them, or those of two axes and more.
        skip_ends: Leaves the first and the last of these tensors in floating point.
    """

    twin = "own_float"
    roles: ClassVar[Mapping[str, Role]] = {"student": STUDENT, "float": FLOAT}

    def __init__(
        self,
        bits: Bits = 4,
        bucket: Bucket = 256,
        points: Literal["uniform", "quantiles"] = "uniform",
        scaling: Scaling = "linear",
        tensors: Which = "all",
        skip_ends: bool = False,
    ) -> None:
        super().__init__(Scheme(bits, bucket, scaling, tensors, skip_ends))
        self.points = points

    def stages(self) -> tuple[Stage, ...]:
        """One without an epoch."""
        return (Stage("quantise", 0.0, alone=True),)

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Takes the trained weights and quantises them."""
        how, student = self.scheme, probe.cast.model("student")
        self.unfit = how.unfit(student)
        load_plain(student, probe.cast.model("float").state_dict())
        how.put_on(student, lambda *_: Fixed(how.bits, how.bucket, how.scaling, self.points))
        self.names = student.state_dict().keys()

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns the quantised student, and the float one."""
        return left(models["student"], self.names, models["float"])
