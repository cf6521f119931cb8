"""A quantisation: weights of k bits, trained through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench import Artifact, Plugin, Signals, Stage
from kdbench.base.weights import plain

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Uniform(nn.Module):
    """Rounds a weight to ``2^bits - 1`` evenly spaced values, symmetric around zero, for each output channel.

    The gradient passes straight through.

    Args:
        bits: Of a weight.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the rounded weight, of the same shape ``(out, …)``."""
        held = weight.detach()
        largest = held.abs().flatten(1).amax(1).clamp(min=torch.finfo(held.dtype).tiny)
        scale = (largest / self.levels).view(-1, *[1] * (held.dim() - 1))
        return (held / scale).round() * scale + (weight - held)  # the difference is zero, its gradient one


class KBit(Plugin):
    """Trains as the rest of the run says, then on with rounded weights; biases and normalisation stay as they are.

    Args:
        bits: Of a weight.
        epochs: Length of the second stage as a share of the configured epochs, on top of them.
        lr: Scales its learning rate.
    """

    def __init__(
        self, bits: Annotated[int, Field(ge=2, le=8)] = 4, epochs: PositiveFloat = 0.25, lr: PositiveFloat = 0.1
    ) -> None:
        super().__init__()
        self.bits, self.epochs, self.lr = bits, epochs, lr

    def stages(self) -> tuple[Stage, ...]:
        """The default stage stands for those of the run's other plugins."""
        return Stage(), Stage("quantised", self.epochs, lr=self.lr)

    def enter(self, stage: Stage, probe: Signals) -> None:
        """Puts the rounding on the student's layers before the stage that trains through it."""
        if stage.name == "quantised":
            for module in [m for m in probe.cast.model("student").modules() if isinstance(m, LAYERS)]:
                if not parametrize.is_parametrized(module, "weight"):
                    parametrize.register_parametrization(module, "weight", Uniform(self.bits))

    def artifacts(self, models: Mapping[str, nn.Module]) -> dict[str, Artifact]:
        """Returns the student with its rounded weights as plain ones, under their own names."""
        return {"student": Artifact(plain(models["student"]))}
