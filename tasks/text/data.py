"""Texts for language models: of a known law, cut into splits, a batch at a time with the word that follows each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.splits import limited
from kdbench.task import Batch
from tasks.text import corpus
from tasks.text.grammar import WORDS, Grammar, chain, make
from tasks.text.loading import TextData, content, cuts
from tasks.text.options import Options

#: In :attr:`Targets.words`: no word to predict.
NONE = -1
FILES = ("learn.npy", "test.npy")


class Inputs(NamedTuple):
    """What a model reads of B texts, padded behind their ends to L words.

    Attributes:
        words: ``(B, L)`` int64; of a language model the full stop in front of a text and all its words but the last.
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
class DataOptions(Options):
    """Options of ``data``.

    Attributes:
        source: ``grammar``.
        grammar: Of the made-up texts, options of :class:`~tasks.text.grammar.Grammar`.
        prompt: Words of each text that are given where a model writes the rest.
        corpus: Folder of texts that a model wrote, ``corpus.safetensors``, which take the place of the training texts.
        beside: Leaves the training texts beside them.
    """

    source: Literal["grammar"] = "grammar"
    grammar: dict[str, Any] = field(default_factory=dict)
    prompt: NonNegativeInt = 0
    corpus: str | None = None
    beside: bool = False


@dataclass(frozen=True)
class Said:
    """Texts of one split.

    Attributes:
        texts: ``(N, L)`` int64 words, without a full stop in front.
        first: Id of the first; ids count on from there.
        supervised: ``(N,)`` bool texts whose words the supervised loss reads, or None for all.
        law: ``(N, L, words)`` float32, the true law of each word, or None.
        given: ``(N,)`` words of each that are not to be predicted, or None for none.
    """

    texts: np.ndarray
    first: int = 0
    supervised: np.ndarray | None = None
    law: np.ndarray | None = None
    given: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: np.ndarray) -> Batch:
        """Makes a batch of the texts at ``rows`` ``(B,)``."""
        law = None if self.law is None else torch.from_numpy(self.law[rows])
        known = None if self.supervised is None else torch.from_numpy(self.supervised[rows])
        batch = collate(torch.from_numpy(self.texts[rows]), torch.from_numpy(rows + self.first), law, known)
        return batch if self.given is None else behind(batch, torch.from_numpy(self.given[rows]))


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
        notes: What a record says of texts that a model wrote.
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
        found = cuts(options, [f"{place:06d}" for place in range(len(learn))])
        val = learn[found.val]
        test = test[limited([f"{place:06d}" for place in range(len(test))], options.test, "test")]
        self.train = Said(learn[found.train], 0, found.supervised)
        self.notes: tuple[str, ...] = ()
        if options.corpus is not None:
            written = corpus.read(Path(options.corpus), len(self.words), self.length)
            self.train, self.notes = _joined(self.train if options.beside else None, written), (written.note,)
        self.val = Said(val, len(self.train), law=self._law(val))
        self.test = Said(test, len(self.train) + len(val), law=self._law(test))
        known = [] if self.train.supervised is None else self.train.supervised.tolist()
        known += [] if self.train.given is None else self.train.given.tolist()
        self.learned = digest([content(self.train.texts), known, content(val), content(self.law.emission)])
        self.digest = digest([self.learned, content(test)])

    def _law(self, texts: np.ndarray) -> np.ndarray:
        return self.law.law(texts).astype(np.float32)

    def module(self, seed: int) -> TextData:
        """Returns the loaders; the order follows ``seed``."""
        return TextData(self, seed)


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


def _joined(own: Said | None, written: corpus.Corpus) -> Said:
    """Returns the texts of a corpus, all to learn from, behind those that there are."""
    if own is None:
        return Said(written.texts, given=written.given)
    texts = np.concatenate([own.texts, written.texts])
    given = np.concatenate([np.zeros(len(own), dtype=np.int64), written.given])
    supervised = own.supervised
    if supervised is not None:
        supervised = np.concatenate([supervised, np.ones(len(written.texts), dtype=bool)])
    return Said(texts, 0, supervised, given=given)


def behind(batch: Batch, given: Tensor) -> Batch:
    """Returns a batch in which the first words of each text, ``(B,)``, are not to be predicted."""
    words = batch.targets.words
    places = torch.arange(words.shape[1], device=words.device)
    return replace(batch, targets=batch.targets._replace(words=torch.where(places < given[:, None], NONE, words)))


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


def open_texts(options: Mapping[str, Any], store: Store) -> Texts:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where made-up texts lie.

    Raises:
        KDBenchError: Options that are not as they should be.
    """
    return Texts(DataOptions(**check("data", DataOptions, options)), store)
