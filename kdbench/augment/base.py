"""What augmentations of a batch have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kdbench.needs import Views
from kdbench.plugin import Plugin
from kdbench.signals import Context, Signals
from kdbench.task import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

#: What a picture calls samples as they are read.
CHANGED = "augmented"
#: The student's view of a batch as it was before.
ORIGINAL = "original"
#: Views of training samples; the cut of bilevel methods, which stands for what is not trained on, stays as it is.
TRAINING = ("main", "train")


class Augmentation(Plugin):
    """Changes what is read of each training batch, by random numbers of its own.

    Args:
        teacher: What roles beside the student read: the ``same`` changed samples, or ``clean`` ones.
    """

    #: The view of the student that is shown beside the samples as they were.
    drawn: ClassVar[str] = "main"

    def __init__(self, teacher: Literal["same", "clean"] = "same") -> None:
        super().__init__()
        self.teacher = teacher

    def build(self, probe: Signals) -> None:
        """Keeps what can be done to samples in this task."""
        self.ops = probe.cast.task.ops()

    def change(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Returns the changed batch.

        Args:
            batch: Of B samples; B may be one.
            draw: Source of all random numbers, on the CPU.
        """
        raise NotImplementedError

    def views(self, views: Views, ctx: Context) -> Views:
        """Changes the training batches of all roles alike, each once, so that it is still one batch for all of them."""
        changed: dict[int, Batch] = {}
        for name, batch in views["student"].items():
            if name in TRAINING and id(batch) not in changed:
                changed[id(batch)] = self.change(batch, ctx.generator("augment", name))
        clean = {role for role in views if self.teacher == "clean" and role != "student"}
        read = {
            role: own if role in clean else {name: changed.get(id(batch), batch) for name, batch in own.items()}
            for role, own in views.items()
        }
        return {**read, "student": {**read["student"], ORIGINAL: views["student"]["main"]}}

    def pictures(self, signals: Signals, rows: Sequence[Mapping[str, float]]) -> Mapping[str, Image]:
        """Draws samples as they were and as they are read, with what the networks say of both."""
        task, models = signals.cast.task, signals.cast.models()
        shown: dict[str, nn.Module] = {name: models[name] for name in ("teacher", "student") if name in models}
        views = {ORIGINAL: signals.batch("student", ORIGINAL), CHANGED: signals.batch("student", self.drawn)}
        return {"views": task.side_by_side(views, shown)}


class Mixing(Augmentation):
    """Mixes each sample with a partner of its batch.

    One permutation says who is whose partner. Two independent ones, ``x_p(i)`` with ``x_q(i)``, are the same law: the
    samples of a batch have no order, and q after the inverse of p is again a random permutation.

    Args:
        alpha: Both parameters of the beta law of the share that a sample has in its mixture.
        per: Whether each ``sample`` or each ``batch`` draws its share.
        portion: Share of the samples of a batch that are mixed at all, drawn anew for each batch.
        replacement: Draws the samples that are left as they are with replacement, so that more than ``portion`` are
            mixed, as the release of partial mixup does.
        teacher: What roles beside the student read: the ``same`` mixtures, or the ``clean`` samples.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"mixable"})
    # A mixture has no one true class, and is not the sample whose id it carries.
    removes: ClassVar[frozenset[str]] = frozenset({"sample_id", "single_label", "dense_label"})

    def __init__(
        self,
        alpha: PositiveFloat = 1.0,
        per: Literal["sample", "batch"] = "sample",
        portion: Annotated[float, Field(ge=0, le=1)] = 1.0,
        replacement: bool = False,
        teacher: Literal["same", "clean"] = "same",
    ) -> None:
        super().__init__(teacher)
        self.alpha = alpha
        self.per = per
        self.portion = portion
        self.replacement = replacement

    def change(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Draws partners and shares, and has the task mix them."""
        size, device = len(batch), batch.ids.device
        order = torch.randperm(size, generator=draw).to(device)
        law = np.random.default_rng(draw.initial_seed())
        share = law.beta(self.alpha, self.alpha, size if self.per == "sample" else 1)
        own = torch.from_numpy(share).float().expand(size).clone()
        own[self.left(size, draw)] = 1.0
        mixed: Batch = self.ops["mix"](batch, order, self.share(batch, order, own.to(device), draw))
        return mixed

    def left(self, size: int, draw: torch.Generator) -> Tensor:
        """Draws the samples of a batch of ``size`` that are not mixed: their places (N,) int64."""
        count = int((1 - self.portion) * size + 1e-6)
        if self.replacement:
            return torch.randint(size, (count,), generator=draw)
        return torch.randperm(size, generator=draw)[:count]

    def share(self, batch: Batch, order: Tensor, own: Tensor, draw: torch.Generator) -> Tensor:
        """Returns the share of each sample in its mixture, ``(B,)``, or of each of its positions, ``(B, *size)``."""
        return own
