"""A data set opened: a fold of it, validation cut from training, labels withheld or moved, loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import SeededLoader
from kdbench.errors import KDBenchError
from kdbench.splits import cut
from tasks.hoi.batches import Sample, Samples, Scale, Share, Transforms, sample
from tasks.hoi.layout import HUMAN, OBJECT, Fold, Layout
from tasks.hoi.sources import open_source

#: Most steps by which noise moves the boundary between two labels.
MOVED = 3


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        source: Which data set: a key of :data:`~tasks.hoi.sources.HOLDS`.
        root: Its folder; None for the embedded one.
        fold: Which cut, from 0 on.
        labels: Share of the training videos, validation apart, that have labels; the others are left out.
        unlabelled: Whether they stay, without labels.
        noise: Probability that a boundary between two training labels is moved by up to three steps.
        train: Most training videos, validation included.
        test: Most test videos.
        kitchen: Of the embedded data, options of :class:`~tasks.hoi.kitchen.Kitchen`.
        batch_size: Videos a batch.
        transforms: Options of :class:`~tasks.hoi.batches.Transforms`.
    """

    source: str
    root: str | None = None
    fold: NonNegativeInt = 0
    labels: Annotated[float, Field(gt=0, le=1)] = 1.0
    unlabelled: bool = False
    noise: Share = 0.0
    train: PositiveInt | None = None
    test: PositiveInt | None = None
    kitchen: dict[str, Any] = field(default_factory=dict)
    batch_size: PositiveInt = 16
    transforms: dict[str, Any] = field(default_factory=dict)


class Clips:
    """The videos of one fold. Ids count through train, validation and test, so that training ids are 0 to N - 1.

    Attributes:
        layout: The whole data set.
        fold: Its cut.
        scale: Of the values, by all training videos, those without labels too.
        transforms: Of training.
        people: In every video.
        objects: Most of a video.
        steps: Of the longest one.
        train: Training samples.
        val: Validation samples.
        test: Test samples.
        supervised: ``(N,)`` training samples whose labels count, or None for all.
        digest: Of content and cuts.
        learned: Of what is not test.
    """

    def __init__(self, layout: Layout, options: DataOptions) -> None:
        if options.fold >= len(layout.folds):
            named = ", ".join(f"{i} ({fold.name})" for i, fold in enumerate(layout.folds))
            raise KDBenchError(f"data.fold={options.fold}: {layout.meta.name} has the folds {named}")
        self.layout, self.options = layout, options
        self.fold = layout.folds[options.fold]
        self.transforms = Transforms(**check("data.transforms", Transforms, options.transforms))
        train, val = _held_out(layout, self.fold, options.train)
        test = _limited(self.fold.test, options.test, "test")
        videos = layout.videos
        self.scale = Scale.of([videos[name] for name in train], len(layout.meta.categories))
        labelled = _limited(train, max(1, round(options.labels * len(train))), "labels")
        self.supervised: Tensor | None = None
        if not options.unlabelled:
            train = labelled
        elif len(labelled) < len(train):
            self.supervised = torch.tensor([name in {*labelled} for name in train])
        self.train, self.val, self.test = (self._samples(names) for names in (train, val, test))
        if options.noise:
            self.train = [_moved(one, options.noise) for one in self.train]
        every = [*self.train, *self.val, *self.test]
        people = {one.inputs.human.shape[1] for one in every}
        if len(people) > 1:
            raise KDBenchError(f"{layout.meta.name}: videos hold {sorted(people)} people, expected one number in all")
        self.people = people.pop()
        self.steps = max(one.steps for one in every)
        self.objects = max(one.inputs.object.shape[1] for one in every)
        self.learned = digest([layout.digest, train, labelled, val, options.noise])
        self.digest = digest([self.learned, test])

    def _samples(self, names: Sequence[str]) -> list[Sample]:
        return [sample(name, self.layout.videos[name], self.scale) for name in names]

    def module(self, seed: int) -> ClipData:
        """Returns the loaders; order and augmentation follow ``seed``."""
        return ClipData(self, seed)


def _held_out(layout: Layout, fold: Fold, most: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns training and validation videos; some of each activity are validation where the fold says nothing."""
    names = _limited(fold.train, most, "train")
    if fold.val is not None:
        return names, fold.val
    if len(names) < 2:
        raise KDBenchError(f"{layout.meta.name}: {len(names)} training video, expected two at least: set data.train=2")
    val = {*cut(names, labels=[layout.meta.videos[name].get("activity", "") for name in names])}
    return tuple(n for i, n in enumerate(names) if i not in val), tuple(n for i, n in enumerate(names) if i in val)


def _limited(names: Sequence[str], most: int | None, purpose: str) -> tuple[str, ...]:
    """Returns at most so many videos, by the hash of their names, in their order."""
    if most is None or most >= len(names):
        return tuple(names)
    order = sorted(names, key=lambda name: hashlib.sha256(f"{purpose}/{name}".encode()).digest())
    kept = {*order[:most]}
    return tuple(name for name in names if name in kept)


def _moved(given: Sample, share: float) -> Sample:
    """Returns a sample of whose labels some begin and end at another step, as annotators do not agree on them."""
    draw = rng.numpy(0, "boundaries", given.name)
    targets = {**given.targets}
    for kind in (HUMAN, OBJECT):
        labels = targets[kind].numpy().copy()
        for track in labels.T:
            for edge in np.flatnonzero(np.diff(track)) + 1:
                shift = int(draw.integers(1, MOVED + 1)) * int(draw.choice([-1, 1]))
                if draw.random() >= share or min(track[edge - 1], track[edge]) < 0:
                    continue
                first, last = sorted((edge, int(np.clip(edge + shift, 1, len(track) - 1))))
                track[first:last] = track[edge - 1] if shift > 0 else track[edge]
        targets[kind] = torch.where(targets[kind] < 0, targets[kind], torch.from_numpy(labels))
    return Sample(given.name, given.inputs, targets)


class ClipData(LightningDataModule):
    """Loaders of an opened data set.

    Args:
        clips: The data set.
        seed: Of order and augmentation.
    """

    def __init__(self, clips: Clips, seed: int) -> None:
        super().__init__()
        self.clips = clips
        self.seed = seed

    def _meta(self) -> list[int]:
        return cut([one.name for one in self.clips.train], purpose="meta")

    def _train(self, seed: int, positions: Sequence[int] | None = None) -> SeededLoader:
        clips = self.clips
        size = clips.transforms.crop or max(one.steps for one in clips.train), clips.objects
        samples = Samples(clips.train, 0, positions, clips.supervised, clips.transforms, size)
        return SeededLoader(samples, clips.options.batch_size, seed, None, True)

    def _scored(self, samples: Sequence[Sample], first: int) -> SeededLoader:
        return SeededLoader(Samples(samples, first), self.clips.options.batch_size, 0, None)

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        """Returns augmented training samples in the order of the seed, ``without_meta`` the rest of that cut."""
        kept = sorted({*range(len(self.clips.train))} - {*self._meta()}) if without_meta else None
        return self._train(self.seed, kept)

    def meta_dataloader(self) -> SeededLoader:
        """Returns the further cut of the training samples that bilevel methods use."""
        return self._train(rng.derive(self.seed, "meta"), self._meta())

    def val_dataloader(self) -> SeededLoader:
        """Returns the validation samples."""
        return self._scored(self.clips.val, len(self.clips.train))

    def test_dataloader(self) -> SeededLoader:
        """Returns the test samples."""
        return self._scored(self.clips.test, len(self.clips.train) + len(self.clips.val))


def open_clips(options: Mapping[str, Any], store: Store) -> Clips:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where converted data lie.

    Raises:
        KDBenchError: Options or files that are not as they should be.
    """
    given = DataOptions(**check("data", DataOptions, options))
    return Clips(open_source(given.source, given.root, store, given.kitchen), given)
