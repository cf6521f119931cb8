"""Texts with one class each, cut into splits, a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from kdbench.base.digest import digest, source_digest
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.errors import KDBenchError, nearest
from kdbench.splits import limited
from kdbench.task import Batch
from tasks.text import files, topics
from tasks.text.grammar import WORDS
from tasks.text.loading import TextData, content, cuts
from tasks.text.options import Options
from tasks.text.sequences import Inputs
from tasks.text.vocabulary import MARKS, PAD, START, Unit, numbers, pieces, vocabulary

FILES = ("learn.npy", "learn_classes.npy", "test.npy", "test_classes.npy", "test_law.npy", "learn_law.npy")


class Labels(NamedTuple):
    """What is to be told of B texts.

    Attributes:
        classes: ``(B,)`` int64, -1 where it is not known.
        law: ``(B, C)`` float32, the true probability of each class given the text; None where it is not known.
    """

    classes: Tensor
    law: Tensor | None


@dataclass(frozen=True)
class LabelledOptions(Options):
    """Options of ``data``.

    Attributes:
        source: ``topics``, or ``files`` for texts of one's own.
        topics: Of the made-up texts, options of :class:`~tasks.text.topics.Topics`.
        root: Where one's own texts are, as :mod:`tasks.text.files` says.
        columns: Of their tables: ``text`` and ``label``.
        unit: What they are cut into: ``words`` or ``characters``.
        vocabulary: How many of those a model knows at most, the most frequent ones of the training texts.
        length: How many of those of a text are read at most, its first.
    """

    source: Literal["topics", "files"] = "topics"
    topics: dict[str, Any] = field(default_factory=dict)
    root: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    unit: Unit = "words"
    vocabulary: PositiveInt = 10000
    length: PositiveInt = 64


@dataclass(frozen=True)
class Source:
    """What a data set holds before it is cut.

    Attributes:
        name: Of the data set.
        vocabulary: Words by their number; the first two are :data:`~tasks.text.vocabulary.MARKS`.
        classes: Names.
        learn: Texts to learn from, ``(N, L)`` int64, :data:`PAD` behind their ends.
        learn_classes: ``(N,)`` int64.
        test: Test texts, likewise.
        test_classes: ``(M,)``.
        learn_law: ``(N, C)`` float32, the true probability of each class given the text, or None.
        test_law: ``(M, C)`` likewise.
        val: Validation texts, where they are not cut from those to learn from.
        val_classes: Their classes.
        notes: Flags of a record.
    """

    name: str
    vocabulary: tuple[str, ...]
    classes: tuple[str, ...]
    learn: np.ndarray
    learn_classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray
    learn_law: np.ndarray | None = None
    test_law: np.ndarray | None = None
    val: np.ndarray | None = None
    val_classes: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledSplit:
    """Texts of one split.

    Attributes:
        texts: ``(N, L)`` int64 words, :data:`PAD` behind their ends.
        classes: ``(N,)`` int64.
        first: Id of the first; ids count on from there.
        supervised: ``(N,)`` bool texts whose class the supervised loss reads, or None for all.
        law: ``(N, C)`` float32, the true probability of each class, or None.
    """

    texts: np.ndarray
    classes: np.ndarray
    first: int = 0
    supervised: np.ndarray | None = None
    law: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: np.ndarray) -> Batch:
        """Makes a batch of the texts at ``rows`` ``(B,)``."""
        law = None if self.law is None else torch.from_numpy(self.law[rows])
        known = None if self.supervised is None else torch.from_numpy(self.supervised[rows])
        labels = Labels(torch.from_numpy(self.classes[rows]), law)
        return Batch(read(torch.from_numpy(self.texts[rows])), labels, torch.from_numpy(rows + self.first), known)


def read(texts: Tensor) -> Inputs:
    """Returns what a model reads of texts ``(B, L)``: a mark in front of each, as many places for all."""
    words = torch.cat([texts.new_full((len(texts), 1), START), texts], 1)
    return Inputs(words, words != PAD)


class LabelledTexts:
    """An opened data set. Ids count through train (those with labels first), validation and test.

    Attributes:
        source: What it holds.
        length: Places of a text, the mark in front of it included.
        train: Training texts.
        val: Validation texts.
        test: Test texts.
        digest: Of content and cuts.
        learned: Of what is not test.
    """

    def __init__(self, options: LabelledOptions, store: Store) -> None:
        self.options = options
        self.source = found = _topics(options, store) if options.source == "topics" else own(options)
        self.length = found.learn.shape[1] + 1
        names = [f"{place:06d}" for place in range(len(found.learn))]
        made = cuts(options, names, found.learn_classes.tolist(), held_out=found.val is None)
        test = limited([f"{place:06d}" for place in range(len(found.test))], options.test, "test")
        self.train = LabelledSplit(found.learn[made.train], found.learn_classes[made.train], 0, made.supervised)
        val_law = None if found.learn_law is None else found.learn_law[made.val]
        if found.val is None or found.val_classes is None:
            val, val_classes = found.learn[made.val], found.learn_classes[made.val]
        else:
            val, val_classes = found.val, found.val_classes
        self.val = LabelledSplit(val, val_classes, len(self.train), law=val_law)
        test_law = None if found.test_law is None else found.test_law[test]
        first = len(self.train) + len(self.val)
        self.test = LabelledSplit(found.test[test], found.test_classes[test], first, law=test_law)
        known = [] if made.supervised is None else made.supervised.tolist()
        texts = [content(array) for split in (self.train, self.val) for array in (split.texts, split.classes)]
        laws = [content(law) for law in (self.val.law,) if law is not None]
        self.learned = digest([*texts, *laws, known, list(found.vocabulary), list(found.classes)])
        of_test = [self.test.texts, self.test.classes, *([] if test_law is None else [test_law])]
        self.digest = digest([self.learned, *map(content, of_test)])

    def module(self, seed: int) -> TextData:
        """Returns the loaders; the order follows ``seed``."""
        return TextData(self, seed)


def _topics(options: LabelledOptions, store: Store) -> Source:
    """Returns the texts about topics, which are made once."""
    made = topics.Topics(**check("data.topics", topics.Topics, options.topics))

    def fill(work: Path) -> dict[str, Any]:
        (learn, learn_classes), (test, test_classes) = topics.make(made)
        laws = topics.chains(made)
        exact = [topics.posterior(laws, texts).astype(np.float32) for texts in (test, learn)]
        for name, array in zip(FILES, (learn, learn_classes, test, test_classes, *exact), strict=True):
            np.save(work / name, array)
        return {"source": "topics"}

    key = digest([asdict(made), source_digest(["tasks.text.topics", "tasks.text.grammar", "tasks.text.hmm"])])
    folder = store.product("text-topics", key, fill, wait_message="the texts about topics").path
    found = {name.removesuffix(".npy"): np.load(folder / name, allow_pickle=False) for name in FILES}
    for part in ("learn", "test"):
        found[part] = found[part] + len(MARKS)
    return Source("topics", (*MARKS, *WORDS), topics.names(made), **found)


def own(options: LabelledOptions) -> Source:
    """Reads texts of one's own; the vocabulary is that of those to learn from.

    Raises:
        KDBenchError: They are not there or not as :mod:`tasks.text.files` says, or there are fewer than two classes.
    """
    if not options.root:
        raise KDBenchError("data.root is not set: expected a folder or a table of texts: data.root=PATH")
    root, columns = Path(options.root), {"label": "label", **options.columns}
    found = files.read(root, files.Columns(**check("data.columns", files.Columns, columns)))
    learn, test = files.of_test(found)
    classes = tuple(sorted({row.label for row in learn}))
    if len(classes) < 2:
        raise KDBenchError(f"data.root={root}: found the class {', '.join(classes)} alone, expected two at least")
    cut_up = {
        name: [pieces(row.text, options.unit) for row in rows] for name, rows in (("learn", learn), ("test", test))
    }
    cut_up |= {"val": [pieces(row.text, options.unit) for row in found.get("val", [])]}
    words = vocabulary(cut_up["learn"], options.vocabulary)
    places, given = (
        {word: n for n, word in enumerate(words)},
        {"learn": learn, "test": test, "val": found.get("val", [])},
    )
    longest = min(options.length, max((len(text) for text in cut_up["learn"]), default=1) or 1)
    arrays: dict[str, np.ndarray] = {}
    for name, rows in given.items():
        padded = [numbers(text[:longest], places) for text in cut_up[name]]
        padded = [text + [PAD] * (longest - len(text)) for text in padded]
        arrays[name] = np.array(padded, dtype=np.int64).reshape(-1, longest)
        number = {label: n for n, label in enumerate(classes)}
        for row in rows:
            if row.label not in number:
                raise KDBenchError(
                    f"{row.name}: {row.label!r} is no class of the training texts: {nearest(row.label, number)}"
                )
        arrays[f"{name}_classes"] = np.array([number[row.label] for row in rows], dtype=np.int64)
    if "val" not in found:
        del arrays["val"], arrays["val_classes"]
    cropped = sum(len(text) > longest for texts in cut_up.values() for text in texts)
    notes = (f"shortened:{cropped} texts to {longest} {options.unit}",) if cropped else ()
    return Source(root.name, words, classes, notes=notes, **arrays)


def open_labelled(options: Mapping[str, Any], store: Store) -> LabelledTexts:
    """Opens a data set and cuts its splits.

    Args:
        options: Of :class:`LabelledOptions`.
        store: Where made-up texts lie.

    Raises:
        KDBenchError: Options that are not as they should be.
    """
    return LabelledTexts(LabelledOptions(**check("data", LabelledOptions, options)), store)
