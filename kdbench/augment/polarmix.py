"""Sectors of LiDAR scans exchanged, objects turned about the sensor and pasted.

Paper: Xiao, Huang, Guan, Cui, Lu, Shao, "PolarMix: A General Data Augmentation Technique for LiDAR Point Clouds",
NeurIPS 2022: its scene-level swapping and its instance-level rotating and pasting. Deviations: sectors and turns are
shares of the azimuths that the scans cover, which is all of them only where nothing was cropped to the view of a
camera; boxes go with the sector of their centre, and instances are the points in boxes, where the paper labels points;
an instance that would stand in another one is not pasted. The paper's text could not be read here, hence
``approximate``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from kdbench.augment.base import Augmentation
from kdbench.errors import KDBenchError
from kdbench.signals import Signals
from kdbench.task import Batch


class PolarMix(Augmentation):
    """The sector of the partner takes the place of that of the sample, and the partner's objects are pasted.

    Args:
        portion: Share of the samples of a batch whose sector is exchanged, drawn anew for each.
        width: Of a sector, as a share of the azimuths that the scans cover.
        paste: Share of the samples into which the objects of the partner are pasted.
        copies: Of each object: the first where it was, the others turned by a random share of the azimuths, each of a
            part of its own.
        teacher: What roles beside the student read: the ``same`` mixtures, or the ``clean`` scans.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"sectors"})
    # A mixture is not the sample whose id it carries.
    removes: ClassVar[frozenset[str]] = frozenset({"sample_id"})
    fidelity: ClassVar[Literal["equations", "approximate"]] = "approximate"

    def __init__(
        self,
        portion: Annotated[float, Field(ge=0, le=1)] = 0.5,
        width: Annotated[float, Field(gt=0, le=1)] = 0.5,
        paste: Annotated[float, Field(ge=0, le=1)] = 1.0,
        copies: PositiveInt = 3,
        teacher: Literal["same", "clean"] = "same",
    ) -> None:
        super().__init__(teacher)
        self.portion = portion
        self.width = width
        self.paste = paste
        self.copies = copies

    def build(self, probe: Signals) -> None:
        """Keeps what can be done to samples in this task.

        Raises:
            KDBenchError: It has no objects to paste.
        """
        super().build(probe)
        if self.paste and "paste_instances" not in self.ops:
            raise KDBenchError(
                f"augment.paste={self.paste:g}: the task {probe.cast.task.name!r} does not say how objects are pasted "
                "(ops: paste_instances): augment.paste=0"
            )

    def change(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Draws partners, sectors and turns, and has the task exchange and paste."""
        order, size = torch.randperm(len(batch), generator=draw), len(batch)
        start, mixed = torch.rand(2, size, generator=draw)
        width = torch.where(mixed < self.portion, self.width, 0.0)
        pasted = torch.rand(size, generator=draw) < self.paste
        # Drawn within an equal part of the circle each, as the two of the release are; the first copy is not turned.
        part = torch.rand(size, self.copies, generator=draw) + torch.arange(self.copies) - 1
        turns = torch.where(torch.arange(self.copies) > 0, part / self.copies, 0.0)
        order, start, width, pasted, turns = (t.to(batch.ids.device) for t in (order, start, width, pasted, turns))
        changed: Batch = self.ops["swap_sectors"](batch, order, start, width)
        if self.paste:
            changed = self.ops["paste_instances"](changed, batch, order, turns, pasted)
        return changed
