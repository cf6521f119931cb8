"""Texts as sequences: what a model reads, and the word that follows at every place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdbench.task import Batch

#: In :attr:`Targets.words`: no word to predict.
NONE = -1


class Inputs(NamedTuple):
    """What a model reads of B texts, padded behind their ends to L words.

    Attributes:
        words: ``(B, L)`` int64; of a language model a mark in front of a text (the full stop of the grammar) and all
            its words but the last.
        mask: ``(B, L)`` bool, words that are there.
    """

    words: Tensor
    mask: Tensor


class Targets(NamedTuple):
    """What is to be predicted at every place.

    Attributes:
        words: ``(B, L)`` int64, the next word; :data:`NONE` where there is none.
        law: ``(B, L, words)`` float32, the true law of the next word; None of texts to learn from.
        size: ``(B,)`` int64 bytes of each text, or None.
    """

    words: Tensor
    law: Tensor | None = None
    size: Tensor | None = None


@dataclass(frozen=True)
class Said:
    """Texts of one split.

    Attributes:
        texts: ``(N, L)`` int64 words, without a mark in front, :data:`NONE` behind their ends.
        first: Id of the first; ids count on from there.
        supervised: ``(N,)`` bool texts whose words the supervised loss reads, or None for all.
        law: ``(N, L, words)`` float32, the true law of each word, or None.
        given: ``(N,)`` words of each that are not to be predicted, or None for none.
        size: ``(N,)`` bytes of each, or None where it is not known.
        mark: The word in front of every text.
    """

    texts: np.ndarray
    first: int = 0
    supervised: np.ndarray | None = None
    law: np.ndarray | None = None
    given: np.ndarray | None = None
    size: np.ndarray | None = None
    mark: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: np.ndarray) -> Batch:
        """Makes a batch of the texts at ``rows`` ``(B,)``."""
        law = None if self.law is None else torch.from_numpy(self.law[rows])
        known = None if self.supervised is None else torch.from_numpy(self.supervised[rows])
        size = None if self.size is None else torch.from_numpy(self.size[rows])
        ids = torch.from_numpy(rows + self.first)
        batch = collate(torch.from_numpy(self.texts[rows]), ids, law, known, self.mark, size)
        return batch if self.given is None else behind(batch, torch.from_numpy(self.given[rows]))


def joined(own: Said | None, texts: np.ndarray, given: np.ndarray, mark: int = 0) -> Said:
    """Returns texts that a model wrote, all to learn from, behind those that there are.

    Args:
        own: Those that there are, or None.
        texts: ``(N, L)`` words.
        given: ``(N,)`` words of each that the model was given.
        mark: The word in front of every text.
    """
    if own is None:
        return Said(texts, given=given, mark=mark)
    before = np.zeros(len(own), dtype=np.int64) if own.given is None else own.given
    supervised = own.supervised
    if supervised is not None:
        supervised = np.concatenate([supervised, np.ones(len(texts), dtype=bool)])
    both = np.concatenate([own.texts, texts]), np.concatenate([before, given])
    return Said(both[0], 0, supervised, given=both[1], mark=mark)


def behind(batch: Batch, given: Tensor) -> Batch:
    """Returns a batch in which the first words of each text, ``(B,)``, are not to be predicted."""
    words = batch.targets.words
    places = torch.arange(words.shape[1], device=words.device)
    return replace(batch, targets=batch.targets._replace(words=torch.where(places < given[:, None], NONE, words)))


def given_words(batch: Batch, prompt: int = 0) -> Tensor:
    """Returns how many words of each text are given, ``(B,)``: those not to be predicted, ``prompt`` at least."""
    lead: Tensor = (batch.targets.words == NONE).long().cumprod(1).sum(1)
    return lead.clamp(min=prompt)


def collate(
    texts: Tensor,
    ids: Tensor,
    law: Tensor | None = None,
    supervised: Tensor | None = None,
    mark: int = 0,
    size: Tensor | None = None,
) -> Batch:
    """Makes a batch of texts.

    Args:
        texts: ``(B, L)`` words, :data:`NONE` behind their ends.
        ids: ``(B,)``.
        law: ``(B, L, words)`` of each word, or None.
        supervised: ``(B,)`` texts whose words the supervised loss reads, or None for all.
        mark: The word in front of every text.
        size: ``(B,)`` bytes of each, or None.
    """
    words = torch.cat([texts.new_full((len(texts), 1), mark), texts[:, :-1]], 1)
    inputs = Inputs(words.clamp(min=0), words >= 0)
    return Batch(inputs, Targets(texts, law, size), ids, supervised)
