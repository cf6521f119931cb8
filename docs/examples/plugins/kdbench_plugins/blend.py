"""An augmentation: every sample mixed with another one of its batch.

Paper: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from kdbench import Context, Logits, Need, Plugin, Signals, Views


class Blend(Plugin):
    """All roles read ``share * x + (1 - share) * x'``, whose label is the same mixture of both labels.

    Args:
        alpha: Both parameters of the beta law that a batch's share is drawn from; a small one mixes little.
    """

    # Says how many classes there are.
    needs: ClassVar[tuple[Need, ...]] = (Need("logits", Logits, ("student",)),)
    requires: ClassVar[frozenset[str]] = frozenset({"differentiable_input", "single_label"})
    # A mixture has no one true class, and is not the sample whose id it carries: CRD and DKD are refused beside it.
    removes: ClassVar[frozenset[str]] = frozenset({"sample_id", "single_label"})

    def __init__(self, alpha: PositiveFloat = 0.2) -> None:
        super().__init__()
        self.alpha = alpha

    def build(self, probe: Signals) -> None:
        """Counts the classes."""
        self.classes = probe.feature("logits", "student").values.shape[1]

    def views(self, views: Views, ctx: Context) -> Views:
        """Mixes what all roles read; a sample whose partner has no label has none either."""
        batch = views["student"]["main"]
        draw = ctx.generator("blend")
        order = torch.randperm(len(batch), generator=draw).to(batch.ids.device)
        share = float(np.random.default_rng(draw.initial_seed()).beta(self.alpha, self.alpha))

        def mixed(values: Tensor) -> Tensor:
            return share * values + (1 - share) * values[order]

        known = batch.targets >= 0 if batch.supervised is None else (batch.targets >= 0) & batch.supervised
        targets = F.one_hot(batch.targets.clamp(min=0), self.classes).to(batch.inputs.dtype)
        blended = batch.with_inputs(mixed(batch.inputs), targets=mixed(targets), supervised=known & known[order])
        return {role: {**named, "main": blended} for role, named in views.items()}
