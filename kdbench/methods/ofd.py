"""Overhaul of feature distillation.

Paper: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019: margin ReLU,
connectors on features before their activation, partial L2 distance, weights ``2^-(L-l)`` over the levels, 0.001 over
all.
Deviations: the authors read mean and deviation of each channel off the teacher's last batch normalisation. A method
sees features and no layers, and after a residual sum that layer says nothing of what was added to it, so both are
measured: on the first batch, then averaged over the batches of training. ``margin=measured`` leaves the assumption of
a Gaussian out and takes the mean of the negative responses themselves. Grids of different sizes are pooled to the
smaller one before the loss.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench import Activated, Context, Method, Need, Signals, State
from kdbench.functional.ofd import gaussian_margin, partial_distance
from kdbench.functional.pool import pool_to_smaller
from kdbench.methods.blocks import connector, levels
from kdbench.signals import total


class OFD(Method):
    """The student follows the teacher's responses before the activation, wherever that changes what comes after it.

    Args:
        margin: ``gaussian`` (closed form) or ``measured``: how the expected negative response is found.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("stages", Activated, many=True),)
    batches: Tensor

    def __init__(self, margin: Literal["gaussian", "measured"] = "gaussian") -> None:
        super().__init__()
        self.margin = margin

    def build(self, probe: Signals) -> None:
        """Makes connectors, and a first measure of the teacher's responses."""
        pairs = levels(probe, "stages")
        self.connectors = nn.ModuleList(connector(s.pre, t.pre) for s, t in pairs)
        self.register_buffer("batches", torch.zeros(()))
        for level, (_, t) in enumerate(pairs):
            self.register_buffer(f"moments{level}", t.pre.new_zeros(2, t.pre.shape[1], dtype=torch.float32))
        self._measure([t.pre for _, t in pairs])

    def _measure(self, teacher: list[Tensor]) -> None:
        """Averages the two moments of each channel that the margin is a function of over the batches so far."""
        if not teacher[0].numel():
            return
        self.batches += 1
        for level, response in enumerate(teacher):
            x = response.float().transpose(0, 1).flatten(1)
            pair = (x, x.square()) if self.margin == "gaussian" else (x.clamp_max(0), (x < 0).float())
            moments = torch.stack([values.mean(1) for values in pair])
            self.get_buffer(f"moments{level}").lerp_(moments, 1 / self.batches)

    def margins(self, level: int) -> Tensor:
        """Returns the margin of each channel of a level, shape ``(C,)``."""
        first, second = self.get_buffer(f"moments{level}")
        if self.margin == "gaussian":
            return gaussian_margin(first, (second - first.square()).clamp_min(0).sqrt())
        return first / second.clamp_min(torch.finfo(second.dtype).tiny)

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``ofd``, the weighted sum over levels."""
        pairs = levels(signals, "stages")
        losses = []
        for level, ((s, t), connect) in enumerate(zip(pairs, self.connectors, strict=True)):
            student, teacher = pool_to_smaller(connect(s.pre), t.pre, "ofd")
            weight = 2.0 ** (level - len(pairs) + 1)
            losses.append(weight * partial_distance(student, teacher, self.margins(level)))
        return {"ofd": total(losses)}

    def after_step(self, signals: Signals, state: State) -> None:
        """Measures the teacher's responses to one more batch."""
        self._measure([t.pre for _, t in levels(signals, "stages")])
