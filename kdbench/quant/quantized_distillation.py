"""Quantized distillation: a student that is trained through its quantised weights.

Paper: Polino, Pascanu, Alistarh, "Model compression via distillation and quantization", ICLR 2018.
The weights are quantised in every forward, and the gradient at the quantised weights steps the float ones. The
distillation loss is the method's, so ``method=none`` is the paper's column without a teacher. Deviations: absolute-max
scaling, which the authors' code has but cannot run, lays its range evenly around zero; of the backward variants there
it is the default one, straight through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from kdbench import Artifact, Signals, Stage
from kdbench.functional.quantize import Scaling
from kdbench.quant.weights import Bits, Bucket, Fixed, Scheme, WeightQuantization, Which, left


class QuantizedDistillation(WeightQuantization):
    """A student that is trained through its quantised weights.

    Args:
        bits: Of a weight's index.
        bucket: Consecutive weights of a tensor that share a range, which costs two floats; null: all of it.
        points: Evenly spaced in the range, or at the quantiles of each tensor as it is.
        scaling: The range: from the smallest to the largest weight, or as far to both sides of zero.
        stochastic: Rounds at random to one of two neighbours while it trains; what is deployed goes to the nearest.
        tensors: Every parameter, biases and normalisation among them, or those of two axes and more.
        skip_ends: Leaves the first and the last of these tensors in floating point.
    """

    def __init__(
        self,
        bits: Bits = 4,
        bucket: Bucket = 256,
        points: Literal["uniform", "quantiles"] = "uniform",
        scaling: Scaling = "linear",
        stochastic: bool = False,
        tensors: Which = "all",
        skip_ends: bool = False,
    ) -> None:
        super().__init__(Scheme(bits, bucket, scaling, tensors, skip_ends))
        self.points, self.stochastic = points, stochastic

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Has the student's weights seen quantised from the first stage on."""
        how, student = self.scheme, probe.cast.model("student")
        self.unfit = how.unfit(student)
        how.put_on(student, lambda *_: Fixed(how.bits, how.bucket, how.scaling, self.points, self.stochastic))

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns the student with its quantised weights as plain ones, and with the float ones that trained."""
        return left(models["student"])
