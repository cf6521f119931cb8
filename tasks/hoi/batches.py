"""Samples as tensors: scaled features, padded batches, and what is drawn for a training sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.data import Key
from kdbench.task import Batch
from tasks.hoi.layout import CLIP, HUMAN, OBJECT, UNKNOWN, Video, moments

Share = Annotated[float, Field(ge=0, le=1)]


class Inputs(NamedTuple):
    """What a model reads of B videos, padded to T steps and N objects; M = H + N nodes, people first.

    Attributes:
        human: ``(B, T, H, Fh)``.
        object: ``(B, T, N, Fo)``.
        edge: ``(B, T, M, M, Fe)``; ``[..., i, j, :]`` is what node i sees of node j.
        mask: ``(B, T, M)`` bool, nodes that are there.
    """

    human: Tensor
    object: Tensor
    edge: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Scale:
    """Mean and spread of the values of nodes and edges, over the nodes and pairs that are there in training videos.

    Attributes:
        mean: By ``human``, ``object`` and ``edge``.
        std: Likewise; one where a value is constant.
        categories: How many object categories there are, which an object's values end in as indicators.
    """

    mean: Mapping[str, Sequence[float]]
    std: Mapping[str, Sequence[float]]
    categories: int

    @classmethod
    def of(cls, videos: Sequence[Video], categories: int) -> Scale:
        """Measures it."""
        return cls(*moments(videos), categories)

    def apply(self, name: str, values: np.ndarray) -> np.ndarray:
        """Scales values of one kind, in float32; what is no number becomes zero."""
        mean, std = (np.asarray(given[name], dtype=np.float32) for given in (self.mean, self.std))
        return np.nan_to_num((values.astype(np.float32) - mean) / std, posinf=0, neginf=0)


@dataclass(frozen=True)
class Sample:
    """A video as tensors, scaled: fields of :class:`Inputs` without the batch, and its labels."""

    name: str
    inputs: Inputs
    targets: Mapping[str, Tensor]

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.inputs.mask)


def sample(name: str, video: Video, scale: Scale) -> Sample:
    """Returns a video as tensors; nodes that are absent are zero and have no label."""
    people = video.human.shape[1]
    there = video.mask
    kinds = np.eye(scale.categories, dtype=np.float32)[video.category]
    thing = np.concatenate(
        [scale.apply(OBJECT, video.object), np.broadcast_to(kinds, (video.steps, *kinds.shape))], axis=2
    )
    pairs = there[:, :, None] & there[:, None] & ~np.eye(there.shape[1], dtype=bool)
    inputs = Inputs(
        torch.from_numpy(scale.apply(HUMAN, video.human) * there[:, :people, None]),
        torch.from_numpy(thing * there[:, people:, None]),
        torch.from_numpy(scale.apply("edge", video.edge) * pairs[..., None]),
        torch.from_numpy(there.copy()),
    )
    targets = {
        HUMAN: _known(video.human_label, there[:, :people]),
        OBJECT: _known(video.object_label, there[:, people:]),
        CLIP: torch.from_numpy(video.clip_label.astype(np.float32)),
    }
    return Sample(name, inputs, targets)


def _known(labels: np.ndarray, seen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(seen, labels, UNKNOWN).astype(np.int64))


@dataclass(frozen=True)
class Transforms:
    """What training samples are changed by; the same for teacher and student, who read one view.

    Attributes:
        nodes: Standard deviation of what is added to the scaled values of nodes.
        edges: Likewise of edges.
        human: Probability that a person's values are zero throughout.
        object: Probability that an object is absent throughout; one always stays.
        crop: Most steps, a window drawn out of longer videos; None for all.
    """

    nodes: NonNegativeFloat = 0.0
    edges: NonNegativeFloat = 0.0
    human: Share = 0.0
    object: Share = 0.0
    crop: PositiveInt | None = None

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return bool(self.nodes or self.edges or self.human or self.object or self.crop)

    def __call__(self, given: Sample, seed: int, epoch: int) -> Sample:
        """Returns a sample as an epoch sees it; what is drawn depends on seed, epoch and the sample's name alone."""
        draw = rng.numpy(seed, "augment", epoch, given.name)
        start = int(draw.integers(given.steps - self.crop + 1)) if self.crop and given.steps > self.crop else 0
        window = slice(start, start + (self.crop or given.steps))
        human, thing, edge, mask = (value[window].clone() for value in given.inputs)
        people = human.shape[1]
        for values, size, there in (
            (human, self.nodes, mask[:, :people]),
            (thing, self.nodes, mask[:, people:]),
            (edge, self.edges, mask[:, :, None] & mask[:, None]),
        ):
            if size:
                noise = torch.from_numpy(draw.standard_normal(values.shape, dtype=np.float32))
                values.add_(noise * (size * there[..., None]))
        edge.diagonal(dim1=1, dim2=2).zero_()
        human *= torch.from_numpy(draw.random(people) >= self.human)[None, :, None]
        gone = draw.random(thing.shape[1]) < self.object
        gone[int(draw.integers(len(gone)))] = False
        targets = {k: v if k == CLIP else v[window] for k, v in given.targets.items()}
        if gone.any():
            absent = torch.from_numpy(np.concatenate([np.zeros(people, bool), gone]))
            mask[:, absent], thing[:, absent[people:]] = False, 0.0
            edge[:, absent], edge[:, :, absent] = 0.0, 0.0
            targets[OBJECT] = targets[OBJECT].masked_fill(absent[people:], UNKNOWN)
        return Sample(given.name, Inputs(human, thing, edge, mask), targets)


def collate(
    samples: Sequence[Sample], ids: Tensor, supervised: Tensor | None = None, shape: tuple[int, int] | None = None
) -> Batch:
    """Pads samples; labels of what is not there are unknown.

    Args:
        samples: Of one number of people.
        ids: Of the samples.
        supervised: Whether each has labels that count.
        shape: Steps and objects of the batch; None for those of the longest and of the fullest.
    """
    fullest = max(s.steps for s in samples), max(s.inputs.object.shape[1] for s in samples)
    steps, objects = shape or fullest
    people = samples[0].inputs.human.shape[1]
    size, nodes = len(samples), people + objects
    first = samples[0].inputs
    inputs = Inputs(
        torch.zeros(size, steps, people, first.human.shape[2]),
        torch.zeros(size, steps, objects, first.object.shape[2]),
        torch.zeros(size, steps, nodes, nodes, first.edge.shape[3]),
        torch.zeros(size, steps, nodes, dtype=torch.bool),
    )
    targets = {
        HUMAN: torch.full((size, steps, people), UNKNOWN),
        OBJECT: torch.full((size, steps, objects), UNKNOWN),
        CLIP: torch.stack([s.targets[CLIP] for s in samples]),
    }
    for row, one in enumerate(samples):
        t, n = one.inputs.object.shape[:2]
        m = people + n
        inputs.human[row, :t] = one.inputs.human
        inputs.object[row, :t, :n] = one.inputs.object
        inputs.edge[row, :t, :m, :m] = one.inputs.edge
        inputs.mask[row, :t, :m] = one.inputs.mask
        targets[HUMAN][row, :t] = one.targets[HUMAN]
        targets[OBJECT][row, :t, :n] = one.targets[OBJECT]
    return Batch(inputs, targets, ids, supervised)


class Samples(Dataset[Batch]):
    """Batches by the keys of their samples.

    Args:
        samples: Them.
        first: Id of the first; ids count on from there.
        positions: Which of them, whose ids they keep; None for all.
        supervised: Whether each of ``samples`` has labels that count; None for all.
        transforms: Of training, or None.
        shape: Steps and objects of every batch; None for those of its longest and fullest video.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        first: int = 0,
        positions: Sequence[int] | None = None,
        supervised: Tensor | None = None,
        transforms: Transforms | None = None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.chosen = [*range(len(samples))] if positions is None else [*positions]
        self.samples = samples
        self.first = first
        self.supervised = supervised
        self.shape = shape
        self.transforms = transforms if transforms is not None and transforms.active else None

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        rows = [self.chosen[key.sample] for key in keys]
        found = [self.samples[row] for row in rows]
        if self.transforms is not None:
            found = [self.transforms(s, key.seed, key.epoch) for s, key in zip(found, keys, strict=True)]
        known = None if self.supervised is None else self.supervised[rows]
        return collate(found, torch.tensor([self.first + row for row in rows]), known, self.shape)
