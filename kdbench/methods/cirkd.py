"""Cross-image relational distillation.

Paper: Yang, Zhou, An, Jiang, Xu, Zhang, "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR
2022: pixel-wise KD, relations of the places of all images of a batch, and relations of each place to memories of the
teacher's pixels and regions of every class, for which a head brings the student to the teacher's width.
Constants of the released code: temperature 0.1, 16 pixels of a class and image into the memory, 4096 pixels and 1024
regions out of it, as many of each class.
Deviations: ``faithful=code`` takes the pixels of the memory from the first positions of an image, as many as it has of
the class, whatever class they are of; ``paper`` from those of the class. Memories take in a batch after its step, so
that places never meet themselves, in the released code before it; they are rings. They start with random entries, as
there: where data are few, shorter ones are filled sooner (a pair's ``published.cirkd``).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdbench import Context, Grid, Logits, Method, Need, Signals, State
from kdbench.functional.cirkd import cross_image_loss, draw_places, memory_loss, ring_places
from kdbench.functional.ifvd import class_centres
from kdbench.functional.numerics import Faithful, unit, upcast
from kdbench.functional.pool import average_pool, pool_to_smaller
from kdbench.methods.blocks import BatchNorm, conv, label_map, pixel_kd

#: A grid of as many cells along each axis is averaged over 4 x 4 where places of a batch are compared.
LARGE, POOL = 256, 4


class CIRKD(Method):
    """Compares places within a batch and with memories of pixels and regions.

    Args:
        temperature: Divides similarities.
        pixel_memory: Entries a class.
        region_memory: Entries a class.
        pixels: Of the memory that a place is compared with, over all classes.
        regions: Likewise.
        pool: Cells along each axis that are one place; 1 as in the paper. Relations of all places to all others cost
            the fourth power of the size of a map.
        stored: Pixels of each class and image that the memory takes in.
        faithful: ``paper`` or ``code``, see the head of this file.
    """

    needs: ClassVar[tuple[Need, ...]] = (Need("feature", Grid), Need("logits", Logits))
    requires: ClassVar[frozenset[str]] = frozenset({"dense_label"})
    over_batch: ClassVar[bool] = True
    pixel_queue: Tensor
    pixel_start: Tensor
    region_queue: Tensor
    region_start: Tensor

    def __init__(
        self,
        temperature: PositiveFloat = 0.1,
        pixel_memory: PositiveInt = 20000,
        region_memory: PositiveInt = 2000,
        pixels: PositiveInt = 4096,
        regions: PositiveInt = 1024,
        pool: PositiveInt = 1,
        stored: PositiveInt = 16,
        faithful: Faithful = "paper",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sizes = {"pixel": pixel_memory, "region": region_memory}
        self.compared = {"pixel": pixels, "region": regions}
        self.pool = pool
        self.stored = stored
        self.faithful = faithful
        self._seen: dict[str, tuple[Tensor, Tensor]] | None = None

    def build(self, probe: Signals) -> None:
        """Makes the head and the memories, of random entries."""
        student, teacher = probe.pair("feature")
        classes = probe.feature("logits", "student").values.shape[1]
        axes, widths = student.values.dim() - 2, (student.values.shape[1], teacher.values.shape[1])
        self.head = nn.Sequential(
            conv(axes, *widths), BatchNorm(widths[1]), nn.ReLU(), conv(axes, widths[1], widths[1])
        )
        for name, size in self.sizes.items():
            self.register_buffer(f"{name}_queue", unit(torch.randn(classes, size, widths[1]), dim=2))
            self.register_buffer(f"{name}_start", torch.zeros(classes, dtype=torch.long))

    def terms(self, signals: Signals, ctx: Context) -> dict[str, Tensor]:
        """Returns ``kd``, ``batch``, ``pixel`` and ``region``."""
        terms: dict[str, Tensor] = {}
        ours, theirs = signals.pair("feature")
        grids = pool_to_smaller(ours.values, theirs.values, "cirkd")
        student, teacher = (_coarse(grid, self.pool) for grid in grids)
        if ctx.wants("kd"):
            terms["kd"] = pixel_kd(signals)
        if ctx.wants("batch"):
            terms["batch"] = cross_image_loss(_of_batch(student), _of_batch(teacher), self.temperature)
        wanted = [name for name in self.sizes if ctx.wants(name)]
        if wanted:
            labels, teacher = label_map(signals, student.shape[2:]), unit(upcast(teacher))
            s, t = (f.movedim(1, -1)[labels >= 0] for f in (unit(upcast(self.head(student))), teacher))
            terms |= {name: memory_loss(s, t, self._drawn(name, ctx), self.temperature) for name in wanted}
            if self.training:
                self._seen = self._taken(teacher, labels, ctx)
        return terms

    def _drawn(self, name: str, ctx: Context) -> Tensor:
        """Returns the entries that places are compared with: the same ones of every class."""
        queue: Tensor = self.get_buffer(f"{name}_queue")
        order = torch.randperm(queue.shape[1], generator=ctx.generator("cirkd", name)).to(queue.device)
        return queue[:, order[: self.compared[name] // len(queue) + 1]].flatten(0, 1)

    def _taken(self, teacher: Tensor, labels: Tensor, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns what each memory takes in of a batch: entries (B, K, M, D), and which are there (B, K, M)."""
        classes = len(self.region_start)
        found = F.one_hot(labels.flatten(1) + 1, classes + 1)[..., 1:].transpose(1, 2).bool()
        centres = unit(class_centres(teacher, labels, classes), dim=2)
        regions = centres[:, :, None], found.any(2)[..., None]
        if self.faithful == "code":
            found = torch.arange(found.shape[2], device=found.device) < found.sum(2, keepdim=True)
        places, there = draw_places(found, self.stored, ctx.generator("cirkd", "stored"))
        index = places.flatten(1)[..., None].expand(-1, -1, teacher.shape[1])
        pixels = teacher.flatten(2).transpose(1, 2).gather(1, index).unflatten(1, places.shape[1:])
        return {"region": regions, "pixel": (pixels, there)}

    def after_step(self, signals: Signals, state: State) -> None:
        """Takes pixels and regions of the teacher into the memories, image after image."""
        for name, (entries, there) in (self._seen or {}).items():
            queue, start = self.get_buffer(f"{name}_queue"), self.get_buffer(f"{name}_start")
            entries, there = entries.transpose(0, 1).flatten(1, 2), there.transpose(0, 1).flatten(1)
            places, kept, following = ring_places(start, there, queue.shape[1])
            classes = torch.arange(len(queue), device=queue.device)[:, None].expand_as(places)
            queue[classes[kept], places[kept]] = entries[kept].to(queue.dtype)
            start.copy_(following)
        self._seen = None


def _coarse(feature: Tensor, cells: int) -> Tensor:
    """Returns a grid averaged over ``cells`` along each axis."""
    return average_pool(feature, [-(-length // cells) for length in feature.shape[2:]])


def _of_batch(feature: Tensor) -> Tensor:
    """Returns what is compared within a batch: a large grid is averaged."""
    return _coarse(feature, POOL) if min(feature.shape[2:]) >= LARGE else feature
