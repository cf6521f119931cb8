"""Texts of a known law for language models, cut into splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt

from kdbench.base import rng
from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.splits import limited
from tasks.text import corpus
from tasks.text.grammar import WORDS, Grammar, chain, make
from tasks.text.hmm import Chain
from tasks.text.loading import TextData, content, cuts
from tasks.text.options import Options
from tasks.text.sequences import Said, joined

FILES = ("learn.npy", "test.npy")
#: Probability, about, of each word that is none of the grammar's: no divergence is infinite.
SELDOM = 1e-9


@dataclass(frozen=True)
class DataOptions(Options):
    """Options of ``data``.

    Attributes:
        source: ``grammar``.
        grammar: Of the made-up texts, options of :class:`~tasks.text.grammar.Grammar`.
        shuffle: Numbers the words in another order, drawn from this seed, the full stop apart; None leaves it as it is.
        prompt: Words of each text that are given where a model writes the rest.
        corpus: Folder of texts that a model wrote, ``corpus.safetensors``, which take the place of the training texts.
        beside: Leaves the training texts beside them.
    """

    source: Literal["grammar"] = "grammar"
    grammar: dict[str, Any] = field(default_factory=dict)
    shuffle: NonNegativeInt | None = None
    prompt: NonNegativeInt = 0
    corpus: str | None = None
    beside: bool = False


class Texts:
    """An opened data set. Ids count through train (those with labels first), validation and test.

    Attributes:
        name: Of the data set.
        grammar: Options of the law of the texts.
        words: The vocabulary; the first is the full stop, in front of every text.
        length: Words of the longest text.
        train: Training texts.
        val: Validation texts.
        test: Test texts.
        digest: Of content and cuts.
        learned: Of what is not test.
        notes: What a record says of texts that a model wrote.
        further: Words behind those of the grammar, which it does not say.
    """

    name: ClassVar[str] = "grammar"
    further: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: DataOptions, store: Store) -> None:
        self.options = options
        self.grammar = Grammar(**check("data.grammar", Grammar, options.grammar))
        order = shuffled(options.shuffle)
        self.words: tuple[str, ...] = (*(WORDS[place] for place in order), *self.further)
        self.length = self.grammar.length
        if options.prompt >= self.length:
            raise KDBenchError(
                f"data.prompt={options.prompt}: texts have {self.length} words; expected fewer, so that one is left"
            )
        self.law = named(chain(self.grammar), self.words)
        learn, test = (order.argsort()[texts] for texts in _made(self.grammar, store))
        found = cuts(options, [f"{place:06d}" for place in range(len(learn))])
        val = learn[found.val]
        test = test[limited([f"{place:06d}" for place in range(len(test))], options.test, "test")]
        self.train = Said(self.told(learn[found.train]), 0, found.supervised)
        self.notes: tuple[str, ...] = ()
        if options.corpus is not None:
            written = corpus.read(Path(options.corpus), len(self.words), self.length)
            self.train, self.notes = self._with(written), (written.note,)
        self.val = Said(val, len(self.train), law=self._law(val))
        self.test = Said(test, len(self.train) + len(val), law=self._law(test))
        known = [] if self.train.supervised is None else self.train.supervised.tolist()
        known += [] if self.train.given is None else self.train.given.tolist()
        self.learned = digest([content(self.train.texts), known, content(val), content(self.law.emission)])
        self.digest = digest([self.learned, content(test)])

    def told(self, texts: np.ndarray) -> np.ndarray:
        """Returns training texts ``(N, L)`` with what else is said in them; here nothing."""
        return texts

    def _with(self, written: corpus.Corpus) -> Said:
        own = self.train if self.options.beside else None
        return joined(own, written.texts, written.given)

    def _law(self, texts: np.ndarray) -> np.ndarray:
        return self.law.law(texts).astype(np.float32)

    def module(self, seed: int) -> TextData:
        """Returns the loaders; the order follows ``seed``."""
        return TextData(self, seed)


def shuffled(seed: int | None) -> np.ndarray:
    """Returns the words of the grammar in the order in which they are numbered, the full stop first."""
    order = np.arange(len(WORDS))
    return order if seed is None else np.concatenate([order[:1], rng.numpy(seed, "words").permutation(order[1:])])


def named(law: Chain, words: Sequence[str]) -> Chain:
    """Returns the law of texts whose words are numbered in another order, and of words that are hardly ever said."""
    columns = [WORDS.index(word) if word in WORDS else -1 for word in words]
    says = np.where(np.array(columns) < 0, SELDOM, law.emission[:, columns])
    return Chain(law.start, law.transition, says / says.sum(1, keepdims=True) if min(columns) < 0 else says)


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


def open_texts(options: Mapping[str, Any], store: Store) -> Texts:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`DataOptions`.
        store: Where made-up texts lie.

    Raises:
        KDBenchError: Options that are not as they should be.
    """
    return Texts(DataOptions(**check("data", DataOptions, options)), store)
