"""Texts of a source, cut into splits, with labels for some of the training texts, loaded a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError
from kdbench.splits import cut, limited
from kdbench.task import Batch
from tasks.text.grammar import WORDS, Grammar, chain, make

#: In :attr:`Targets.words`: no word to predict.
NONE = -1
FILES = ("learn.npy", "test.npy")


class Inputs(NamedTuple):
    """What a model reads of B texts, padded behind their ends to L words.

    Attributes:
        words: ``(B, L)`` int64, of a text the full stop in front of it and all words but the last.
        mask: ``(B, L)`` bool, words that are there.
    """

    words: Tensor
    mask: Tensor


class Targets(NamedTuple):
    """What is to be predicted at every place.

    Attributes:
        words: ``(B, L)`` int64, the next word; :data:`NONE` where there is none.
        law: ``(B, L, words)`` float32, the true law of the next word; None of texts to learn from.
    """

    words: Tensor
    law: Tensor | None


@dataclass(frozen=True)
class DataOptions:
    """Options of ``data``.

    Attributes:
        source: ``grammar``.
        grammar: Of the made-up texts, options of :class:`~tasks.text.grammar.Grammar`.
        train: Most texts to learn from, validation included.
        test: Most test texts.
        labels: Training texts whose words the supervised loss reads; None for all.
        unlabelled: Further training texts that only distillation reads; ``rest`` for all that are left.
        prompt: Words of each text that are given where a model writes the rest.
        batch_size: Texts a batch.
    """

    source: Literal["grammar"] = "grammar"
    grammar: dict[str, Any] = field(default_factory=dict)
    train: PositiveInt | None = None
    test: PositiveInt | None = None
    labels: PositiveInt | None = None
    unlabelled: NonNegativeInt | Literal["rest"] = 0
    prompt: NonNegativeInt = 0
    batch_size: PositiveInt = 64


@dataclass(frozen=True)
class Split:
    """Texts of one split.

    Attributes:
        texts: ``(N, L)`` int64 words, without a full stop in front.
        first: Id of the first; ids count on from there.
        supervised: ``(N,)`` bool texts whose words the supervised loss reads, or None for all.
        law: ``(N, L, words)`` float32, the true law of each word, or None.
    """

    texts: np.ndarray
    first: int = 0
    supervised: np.ndarray | None = None
    law: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)


class Texts:
    """An opened data set. Ids count through train (those with labels first), validation and test.

    Attributes:
        grammar: Options of the law of the texts.
        words: The vocabulary; the first is the full stop, in front of every text.
        length: Words of the longest text.
        train: Training texts.
        val: Validation texts.
        test: Test texts.
        digest: Of content and cuts.
        learned: Of what is not test.
    """

    def __init__(self, options: DataOptions, store: Store) -> None:
        self.options = options
        self.grammar = Grammar(**check("data.grammar", Grammar, options.grammar))
        self.words: tuple[str, ...] = WORDS
        self.length = self.grammar.length
        if options.prompt >= self.length:
            raise KDBenchError(
                f"data.prompt={options.prompt}: texts have {self.length} words; expected fewer, so that one is left"
            )
        self.law = chain(self.grammar)
        learn, test = _made(self.grammar, store)
        names = [f"{place:06d}" for place in range(len(learn))]
        if len(learn) < 2 or (options.train or 2) < 2:
            raise KDBenchError(
                f"data.train={options.train}, data.grammar.texts={len(learn)}: expected two texts at least, as "
                "validation is cut from them"
            )
        pool = limited(names, options.train, "train")
        held_out = cut([names[place] for place in pool])
        rest = np.delete(np.array(pool), held_out)
        train, supervised = self._chosen(rest, names)
        val = learn[[pool[place] for place in held_out]]
        test = test[limited([f"{place:06d}" for place in range(len(test))], options.test, "test")]
        self.train = Split(learn[train], 0, supervised)
        self.val = Split(val, len(train), law=self._law(val))
        self.test = Split(test, len(train) + len(val), law=self._law(test))
        known = [] if supervised is None else supervised.tolist()
        self.learned = digest([_hash(self.train.texts), known, _hash(val), _hash(self.law.emission)])
        self.digest = digest([self.learned, _hash(test)])

    def _chosen(self, rest: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns which texts are trained on, and whose words the supervised loss reads."""
        options = self.options
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
        joined = (
            others[limited([names[rest[place]] for place in others], wanted, "unlabelled")] if wanted else others[:0]
        )
        train = rest[np.concatenate([labelled, joined])]
        return train, np.arange(len(train)) < len(labelled) if wanted else None

    def _law(self, texts: np.ndarray) -> np.ndarray:
        return self.law.law(texts).astype(np.float32)

    def module(self, seed: int) -> TextData:
        """Returns the loaders; the order follows ``seed``."""
        return TextData(self, seed)


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _made(grammar: Grammar, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Returns the texts of a grammar, which are made once."""

    def fill(work: Path) -> dict[str, Any]:
        for name, texts in zip(FILES, make(grammar), strict=True):
            np.save(work / name, texts.astype(np.int16))
        return {"source": "grammar"}

    key = digest([asdict(grammar), source_digest(["tasks.text.grammar", "tasks.text.hmm"])])
    folder = store.product("text-grammar", key, fill, wait_message="the texts of the grammar").path
    learn, test = (np.load(folder / name, allow_pickle=False).astype(np.int64) for name in FILES)
    return learn, test


def collate(
    texts: Tensor, ids: Tensor, law: Tensor | None = None, supervised: Tensor | None = None, stop: int = 0
) -> Batch:
    """Makes a batch of texts of one length.

    Args:
        texts: ``(B, L)`` words.
        ids: ``(B,)``.
        law: ``(B, L, words)`` of each word, or None.
        supervised: ``(B,)`` texts whose words the supervised loss reads, or None for all.
        stop: The word in front of every text.
    """
    words = torch.cat([texts.new_full((len(texts), 1), stop), texts[:, :-1]], 1)
    inputs = Inputs(words, torch.ones_like(words, dtype=torch.bool))
    return Batch(inputs, Targets(texts, law), ids, supervised)


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
        rows, split = self.chosen[[key.sample for key in keys]], self.split
        law = None if split.law is None else torch.from_numpy(split.law[rows])
        known = None if split.supervised is None else torch.from_numpy(split.supervised[rows])
        return collate(torch.from_numpy(split.texts[rows]), torch.from_numpy(rows + split.first), law, known)


class TextData(LightningDataModule):
    """Loaders of an opened data set.

    Args:
        texts: The data set.
        seed: Of the order.
    """

    def __init__(self, texts: Texts, seed: int) -> None:
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


def open_texts(options: Mapping[str, Any], store: Store) -> Texts:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where made-up texts lie.

    Raises:
        KDBenchError: Options that are not as they should be.
    """
    return Texts(DataOptions(**check("data", DataOptions, options)), store)
