"""A learned augmentation in the latents of a generative model.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023, which perturbs the
latents of a hierarchical variational autoencoder. See :mod:`kdbench.augment.hard`. Here it is a small one, trained
first, on the training samples, and kept as a product of its own; to an image is added what the perturbation of its
latents changes in its reconstruction, so that none leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kdbench.augment.hard import HARD, Gaussian, unmoved
from kdbench.needs import Asked, Role
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry, Task

SIDE = "autoencoder"
TAPS = {"code": "encoder", "reconstruction": "decoder"}


class HARDVAE(Gaussian):
    """Perturbs the latents of every place of an image.

    Args:
        latents: Of the autoencoder, of each place.
        width: Channels of its layers.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pixels", "differentiable_input", "single_label"})
    roles: ClassVar[Mapping[str, Role]] = {
        **HARD.roles,
        SIDE: Role("frozen", side=SIDE, init="trained", grad="input", product=SIDE),
    }
    trainings: ClassVar[tuple[Asked, ...]] = (
        Asked(
            SIDE,
            SIDE,
            under={
                "name": SIDE,
                "_target_": "kdbench.augment.autoencoder.Autoencoding",
                "weights": {"task": 0.1, "reconstruction": 1.0, "kl": 0.1},
            },
        ),
    )

    def __init__(
        self,
        latents: PositiveInt = 8,
        width: PositiveInt = 32,
        start: float = -3.0,
        temperature: PositiveFloat = 1.0,
        turns: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(start, temperature, turns)
        self.latents, self.width = latents, width

    def sides(self, pair: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
        """Adds the autoencoder."""
        architecture = {
            "_target_": "kdbench.augment.autoencoder.Autoencoder",
            "latents": self.latents,
            "width": self.width,
            "dense": "dense_label" in task.capabilities,
        }
        return {**pair, SIDE: {"architecture": architecture, "taps": TAPS}}

    def prepare(self, probe: Signals) -> tuple[str, ...]:
        """Keeps the trained autoencoder, which is another owner's."""
        self.autoencoder: tuple[Any] = (probe.cast.model(SIDE),)
        return tuple(f"latent_{i}" for i in range(self.latents))

    def vary(self, batch: Batch, numbers: Tensor, ctx: Context) -> tuple[Batch, Carry]:
        """Perturbs each latent of an image alike in all places."""
        (autoencoder,) = self.autoencoder
        mean, _ = autoencoder.encode(batch.inputs)
        size = batch.inputs.shape[2:]
        change = autoencoder.decoder(mean + numbers[..., None, None], size) - autoencoder.decoder(mean, size)
        return batch.with_inputs(batch.inputs + change), unmoved
