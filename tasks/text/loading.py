"""Splits of texts, which of them have labels, and their batches: what all data sets of texts share."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.splits import cut, limited
from kdbench.task import Batch
from tasks.text.options import Options


class Split(Protocol):
    """Texts of one split, with ids that count on from the one before."""

    @property
    def supervised(self) -> np.ndarray | None:
        """``(N,)`` bool texts whose labels the supervised loss reads, or None for all."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Batch:
        """Makes a batch of the texts at ``rows`` ``(B,)``."""


class Opened(Protocol):
    """An opened data set, its splits cut."""

    @property
    def train(self) -> Split:
        """Training texts, those with labels first."""

    @property
    def val(self) -> Split:
        """Validation texts."""

    @property
    def test(self) -> Split:
        """Test texts."""

    @property
    def options(self) -> Options:
        """How they are cut and read."""


@dataclass(frozen=True)
class Cuts:
    """Which texts go where.

    Attributes:
        train: ``(N,)`` rows of those to learn from, those with labels first.
        supervised: ``(N,)`` bool which have labels, or None for all.
        val: ``(M,)`` rows of validation.
    """

    train: np.ndarray
    supervised: np.ndarray | None
    val: np.ndarray


def cuts(
    options: Options, names: Sequence[str], classes: Sequence[Hashable] | None = None, held_out: bool = True
) -> Cuts:
    """Cuts validation and the texts with labels, by the hash of their names.

    Args:
        options: Of the data set.
        names: Of the texts to learn from, validation included.
        classes: Of each text, so that validation holds one of every class.
        held_out: Whether validation is cut from them.

    Raises:
        KDBenchError: There are fewer texts than the options ask for.
    """
    pool = np.array(limited(names, options.train, "train"))
    if len(pool) < 2:
        raise KDBenchError(
            f"data.train={options.train}: found {len(pool)} texts to learn from, expected two at least, as validation "
            "is cut from them"
        )
    own = None if classes is None else [classes[place] for place in pool]
    val = cut([names[place] for place in pool], labels=own) if held_out else []
    train, supervised = _chosen(options, np.delete(pool, val), names)
    return Cuts(train, supervised, pool[val])


def _chosen(options: Options, rest: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns which texts are trained on, and whose labels the supervised loss reads."""
    if options.labels is not None and options.labels > len(rest):
        raise KDBenchError(
            f"data.labels={options.labels}: {len(rest)} training texts are left beside validation; expected at "
            "most as many"
        )
    labelled = np.array(limited([names[place] for place in rest], options.labels, "labels"))
    others = np.setdiff1d(np.arange(len(rest)), labelled)
    wanted = len(others) if options.unlabelled == "rest" else options.unlabelled
    if wanted > len(others):
        raise KDBenchError(
            f"data.unlabelled={wanted}: {len(others)} training texts are left beside the {len(labelled)} with "
            f"labels; expected at most {len(others)}" + ("" if options.labels else ", after fewer data.labels")
        )
    joined = others[limited([names[rest[place]] for place in others], wanted, "unlabelled")] if wanted else others[:0]
    train = rest[np.concatenate([labelled, joined])]
    return train, np.arange(len(train)) < len(labelled) if wanted else None


def content(array: np.ndarray) -> str:
    """Returns a digest of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class Samples(Dataset[Batch]):
    """Batches by the keys of their samples.

    Args:
        split: The texts.
        positions: Which of them, whose ids they keep; None for all.
    """

    def __init__(self, split: Split, positions: np.ndarray | None = None) -> None:
        self.chosen = np.arange(len(split)) if positions is None else positions
        self.split = split

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Fetches a whole batch."""
        return self.split.batch(self.chosen[[key.sample for key in keys]])


class TextData(LightningDataModule):
    """Loaders of an opened data set.

    Args:
        texts: The data set.
        seed: Of the order.
    """

    def __init__(self, texts: Opened, seed: int) -> None:
        super().__init__()
        self.texts = texts
        self.seed = seed

    def _loader(self, samples: Samples, seed: int = 0, train: bool = False) -> SeededLoader:
        return SeededLoader(samples, self.texts.options.batch_size, seed, None, train)

    def _meta(self) -> np.ndarray:
        train = self.texts.train
        known = np.arange(len(train)) if train.supervised is None else np.flatnonzero(train.supervised)
        return known[cut([str(place) for place in known], purpose="meta")]

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        """Returns training texts in the order of the seed, ``without_meta`` the rest of that cut."""
        train = self.texts.train
        rest = np.setdiff1d(np.arange(len(train)), self._meta()) if without_meta else None
        return self._loader(Samples(train, rest), self.seed, train=True)

    def meta_dataloader(self) -> SeededLoader:
        """Returns the further cut of the training texts with labels that bilevel methods use."""
        return self._loader(Samples(self.texts.train, self._meta()), rng.derive(self.seed, "meta"), train=True)

    def val_dataloader(self) -> SeededLoader:
        """Returns the validation texts."""
        return self._loader(Samples(self.texts.val))

    def test_dataloader(self) -> SeededLoader:
        """Returns the test texts."""
        return self._loader(Samples(self.texts.test))
