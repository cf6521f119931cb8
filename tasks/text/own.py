"""Language models of texts of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torchmetrics import MetricCollection

from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.errors import KDBenchError
from kdbench.functional.numerics import upcast
from kdbench.splits import limited
from kdbench.task import Batch
from tasks.text import corpus, files
from tasks.text.language import LanguageModel
from tasks.text.loading import TextData, content, cuts
from tasks.text.metrics import PerByte
from tasks.text.options import Options
from tasks.text.sequences import NONE, Said, joined
from tasks.text.vocabulary import Bytes


@dataclass(frozen=True)
class OwnOptions(Options):
    """Options of ``data``.

    Attributes:
        root: Where the texts are, as :mod:`tasks.text.files` says.
        columns: Of tables: ``text``.
        length: Bytes that a model reads at a time, the end of a text among them; longer texts are cut into pieces.
        prompt: Words of each text that are given where a model writes the rest.
        corpus: Folder of texts that a model wrote, which take the place of the training texts.
        beside: Leaves the training texts beside them.
    """

    root: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    length: Annotated[int, Field(ge=2)] = 128
    prompt: NonNegativeInt = 0
    corpus: str | None = None
    beside: bool = False


class OwnTexts:
    """Texts of one's own, cut into pieces of one length. Ids count through train, validation and test.

    Attributes:
        name: Of the folder.
        tokens: What texts are made of.
        words: The vocabulary.
        length: Of a piece.
        train: Training texts, those with labels first.
        val: Validation texts.
        test: Test texts.
        digest: Of content and cuts.
        learned: Of what is not test.
        notes: Flags of a record.
    """

    def __init__(self, options: OwnOptions) -> None:
        if not options.root:
            raise KDBenchError("data.root is not set: expected a folder or a table of texts: data.root=PATH")
        root = Path(options.root)
        self.options = options
        self.name = root.name
        self.tokens = Bytes()
        self.words = self.tokens.words
        self.length = options.length
        if options.prompt >= self.length:
            raise KDBenchError(f"data.prompt={options.prompt}: pieces have {self.length} bytes; expected fewer")
        found = files.read(root, files.Columns(**check("data.columns", files.Columns, options.columns)))
        learn, test = files.of_test(found)
        if "val" in found:
            names = [row.name for row in learn]
            chosen = cuts(options, names, held_out=False)
            val = found["val"]
        else:
            chosen = cuts(options, [row.name for row in learn])
            val = [learn[place] for place in chosen.val]
        self.notes: tuple[str, ...] = ()
        self.train = self._said([learn[place] for place in chosen.train], 0, chosen.supervised)
        if options.corpus is not None:
            written = corpus.read(Path(options.corpus), len(self.words), self.length)
            own = self.train if options.beside else None
            self.train, self.notes = joined(own, written.texts, written.given), (written.note,)
        self.val = self._said(val, len(self.train))
        few = limited([row.name for row in test], options.test, "test")
        self.test = self._said([test[place] for place in few], len(self.train) + len(self.val))
        known = [] if self.train.supervised is None else self.train.supervised.tolist()
        known += [] if self.train.given is None else self.train.given.tolist()
        self.learned = digest([content(self.train.texts), known, content(self.val.texts), list(self.words)])
        self.digest = digest([self.learned, content(self.test.texts)])

    def _said(self, rows: Sequence[files.Row], first: int, supervised: np.ndarray | None = None) -> Said:
        """Cuts texts into pieces; each has its end behind the last one."""
        texts, sizes, owner = [], [], []
        for number, row in enumerate(rows):
            whole = [*self.tokens.encode(row.text), self.tokens.mark]
            for start in range(0, len(whole), self.length):
                piece = whole[start : start + self.length]
                sizes.append(len(piece) - (start + self.length >= len(whole)))
                texts.append(piece + [NONE] * (self.length - len(piece)))
                owner.append(number)
        array = np.array(texts, dtype=np.int64).reshape(-1, self.length)
        known = None if supervised is None else supervised[owner]
        return Said(array, first, known, size=np.array(sizes, dtype=np.int64))

    def module(self, seed: int) -> TextData:
        """Returns the loaders; the order follows ``seed``."""
        return TextData(self, seed)


class OwnText(LanguageModel):
    """Predicts the next byte; the options of ``data`` are those of :class:`OwnOptions`."""

    primary: ClassVar[str] = "bits_per_byte"
    embedded: ClassVar[bool] = False
    unit: ClassVar[str | None] = "bits"
    metric_law: ClassVar[str] = "mean"

    @cached_property
    def texts(self) -> OwnTexts:
        """The data set."""
        return OwnTexts(
            OwnOptions(**check("data", OwnOptions, {k: v for k, v in self.options.items() if k != "source"}))
        )

    def metrics(self, split: str) -> MetricCollection:
        """Against the bytes."""
        return MetricCollection([PerByte()], compute_groups=False)

    def score(self, metrics: MetricCollection, model: nn.Module, outputs: Tensor, batch: Batch) -> None:
        """Feeds what is said of one batch to the metrics."""
        metrics.update(outputs, batch.targets.words, None, batch.targets.size)

    def contributions(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Returns for each piece of a text the bits that it takes, and its bytes."""
        words, there = batch.targets.words, batch.targets.words >= 0
        log_probs = F.log_softmax(upcast(outputs).double(), -1).gather(2, words.clamp(min=0)[..., None])[..., 0]
        bits = -torch.where(there, log_probs, 0.0).sum(1) / math.log(2)
        return torch.stack([bits, batch.targets.size.to(bits.dtype)], 1)

    def spelled(self, numbers: list[int]) -> list[str]:
        """Returns the bytes of a text, as they are drawn."""
        return [self.words[number] for number in numbers]

    def joined(self, numbers: list[int]) -> str:
        """Returns a text in one line."""
        return Bytes().decode(numbers)

    def parse(self, text: str) -> Batch:
        """Reads a text, which a model continues; of a long one its end.

        A prompt of nothing but blanks is one like any other; an empty one is the beginning of a text.
        """
        return self.prompt(Bytes().encode(text)[-(self.length - 1) :] if text else [])
