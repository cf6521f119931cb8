"""A learned augmentation that bends images.

Paper: Nix, Burg, Sinz, "HARD: Hard Augmentations for Robust Distillation", arXiv 2305.14890, 2023, whose augmentors go
from simple spatial ones to generative ones; a thin-plate spline (Bookstein, 1989) is the one after affine maps. See
:mod:`kdbench.augment.hard`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from kdbench.augment.hard import Gaussian
from kdbench.functional.hard_thinplate import control_points, thin_plate_basis
from kdbench.functional.numerics import full_precision
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Carry


class HARDThinPlate(Gaussian):
    """Displaces a few points of every image, and all between them as smoothly as can be.

    Args:
        side: So many control points across and down.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"deform"})

    def __init__(
        self,
        side: Annotated[int, Field(ge=2)] = 3,
        start: float = -3.0,
        temperature: PositiveFloat = 1.0,
        turns: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(start, temperature, turns)
        self.control = control_points(side)
        self.side = side

    def prepare(self, probe: Signals) -> tuple[str, ...]:
        """Keeps how the task moves its samples."""
        self.deform = probe.cast.task.ops()["deform"]
        places = [f"{row}{column}" for row in range(self.side) for column in range(self.side)]
        return tuple(f"{axis}{place}" for place in places for axis in "xy")

    def vary(self, batch: Batch, numbers: Tensor, ctx: Context) -> tuple[Batch, Carry]:
        """Displaces the control points of each sample by its own numbers."""
        moved = numbers.view(len(batch), -1, 2)

        def source(positions: Tensor) -> Tensor:
            with full_precision(moved):
                return positions + thin_plate_basis(self.control, positions).to(moved) @ moved

        found: tuple[Batch, Carry] = self.deform(batch, source)
        return found
