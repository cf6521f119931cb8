"""Splits of images with annotations, and the batches that come of them: what segmentation and detection share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.splits import SHARE, cut, limited
from kdbench.task import Batch

#: Bytes of decoded images and masks that are kept in memory, where they are read in the training process.
KEPT = 2**29


class Named(Protocol):
    """A sample: by the hash of its name every cut is made, and what is drawn for it belongs to that name."""

    @property
    def name(self) -> str:
        """Of the sample."""


S = TypeVar("S", bound=Named)


@dataclass(frozen=True)
class Part(Generic[S]):
    """The samples of one split.

    Attributes:
        samples: Them.
        first: Id of the first; ids count on from there.
    """

    samples: tuple[S, ...]
    first: int = 0

    def __len__(self) -> int:
        return len(self.samples)


class Loading(Protocol):
    """Options of how batches are read.

    Attributes:
        batch_size: Samples a batch.
        workers: Loader processes; 0 reads in the training process.
    """

    @property
    def batch_size(self) -> int:
        """Samples a batch."""

    @property
    def workers(self) -> int:
        """Loader processes."""


class Opened(Protocol):
    """An opened data set, its splits cut; ids count through train, validation and test, from 0 on."""

    train: Part[Any]
    val: Part[Any]
    test: Part[Any]
    transforms: Any

    @property
    def options(self) -> Loading:
        """How its batches are read."""


D = TypeVar("D", bound=Opened)


class Samples(Dataset[Batch], Generic[S, D]):
    """Batches by the keys of their samples; what is drawn for a sample depends on its key alone.

    Args:
        source: Whose.
        part: Which samples.
        positions: Which of the samples of ``part``, whose ids they keep; None for all.
        transforms: Augmentation, or None.
    """

    def __init__(
        self, source: D, part: Part[S], positions: Sequence[int] | None = None, transforms: Any = None
    ) -> None:
        chosen = range(len(part)) if positions is None else positions
        self.source = source
        self.samples = [part.samples[i] for i in chosen]
        self.ids = torch.tensor([part.first + i for i in chosen], dtype=torch.long)
        self.keys = np.array([rng.derive(0, "sample", s.name) for s in self.samples], dtype=np.uint64)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    @abstractmethod
    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""


class PartLoaders(LightningDataModule):
    """Loaders of an opened data set.

    Args:
        source: The data set.
        samples: Makes batches of a part of it.
        seed: Of order and augmentation.
    """

    def __init__(self, source: Opened, samples: type[Samples[Any, Any]], seed: int) -> None:
        super().__init__()
        self.source = source
        self.samples = samples
        self.seed = seed

    def _meta(self) -> list[int]:
        return cut([sample.name for sample in self.source.train.samples], purpose="meta")

    def _train(self, seed: int, positions: Sequence[int] | None = None) -> SeededLoader:
        source, options = self.source, self.source.options
        samples = self.samples(source, source.train, positions, source.transforms)
        return SeededLoader(samples, options.batch_size, seed, None, True, options.workers)

    def _scored(self, part: Part[Any]) -> SeededLoader:
        options = self.source.options
        size = options.batch_size if self.together(part) else 1
        return SeededLoader(self.samples(self.source, part), size, 0, None, False, options.workers)

    def together(self, part: Part[Any]) -> bool:
        """Says whether samples that are scored fit into one batch; else they come one by one."""
        return True

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        """Returns augmented training samples in the order of the seed, ``without_meta`` the rest of that cut."""
        kept = sorted({*range(len(self.source.train))} - {*self._meta()}) if without_meta else None
        return self._train(self.seed, kept)

    def meta_dataloader(self) -> SeededLoader:
        """Returns the further cut of the training samples that bilevel methods use."""
        return self._train(rng.derive(self.seed, "meta"), self._meta())

    def val_dataloader(self) -> SeededLoader:
        """Returns the validation samples."""
        return self._scored(self.source.val)

    def test_dataloader(self) -> SeededLoader:
        """Returns the test samples."""
        return self._scored(self.source.test)


def held_out(every: tuple[S, ...], most: int | None, where: str) -> tuple[tuple[S, ...], tuple[S, ...]]:
    """Cuts validation from training; it never meets what a run with more or fewer samples trains on.

    Args:
        every: Training samples.
        most: How many at most, validation included; None for all.
        where: Names them in an error.

    Returns:
        Those to train on, and those of validation.

    Raises:
        KDBenchError: There are fewer than two.
    """
    count = min(most or len(every), len(every))
    if count < 2:
        raise KDBenchError(
            f"{where}: {count} image to train on (data.train={most}); expected two at least, as validation is cut "
            "from them"
        )
    apart = cut([sample.name for sample in every])
    few = len(apart) if count == len(every) else max(1, round(SHARE * count))
    val = at_most([every[i] for i in apart], few, "val")
    rest = [sample for i, sample in enumerate(every) if i not in {*apart}]
    return at_most(rest, count - few, "train"), val


def at_most(samples: Sequence[S], most: int | None, purpose: str) -> tuple[S, ...]:
    """Returns at most so many samples, by the hash of their names, in their order."""
    return tuple(samples[i] for i in limited([sample.name for sample in samples], most, purpose))
