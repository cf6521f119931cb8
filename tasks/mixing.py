"""Mixtures of two samples of a batch: their inputs, and what is known of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdbench.functional.mix import known_mixture, mean_share, mix
from kdbench.task import Batch


def mixed(batch: Batch, order: Tensor, own: Tensor, targets: Any, known: Tensor | None = None) -> Batch:
    """Returns a batch of mixtures.

    Args:
        batch: Of B samples, its inputs ``(B, C, *size)``.
        order: Partner of each ``(B,)``.
        own: Share of the sample itself, ``(B,)`` or ``(B, *size)``.
        targets: Of the mixtures.
        known: ``(B,)`` mixtures whose label is known; None leaves that to ``targets``.
    """
    share = mean_share(own)
    supervised, distilled = (
        None if mask is None else known_mixture(mask, order, share) for mask in (batch.supervised, batch.distilled)
    )
    if known is not None:
        supervised = known if supervised is None else supervised & known
    inputs = mix(batch.inputs, order, own)
    return batch.with_inputs(inputs, targets=targets, supervised=supervised, distilled=distilled)
