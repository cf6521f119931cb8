"""Texts that a model wrote, read back to be learned from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench.base.store import MANIFEST
from kdbench.base.weights import read_weights
from kdbench.errors import KDBenchError
from tasks.text.sequences import NONE

FILE = "corpus.safetensors"


@dataclass(frozen=True)
class Corpus:
    """Texts that a model wrote.

    Attributes:
        texts: ``(N, L)`` int64 words, :data:`~tasks.text.sequences.NONE` behind their ends.
        given: ``(N,)`` int64, words of each that the model was given.
        note: Who wrote how many, as a flag of a record.
    """

    texts: np.ndarray
    given: np.ndarray
    note: str


def read(folder: Path, words: int, length: int) -> Corpus:
    """Reads a folder with ``corpus.safetensors``, and who wrote it in ``manifest.json`` where that is there.

    Args:
        folder: As ``teacher.corpus`` leaves it in the cache.
        words: How many there are.
        length: Words of a text.

    Raises:
        KDBenchError: It is not there, or its texts are none of these words and this length.
    """
    path = folder / FILE
    if not path.is_file():
        raise KDBenchError(f"data.corpus={folder}: found no {FILE}, expected a folder that teacher.corpus made")
    held = read_weights(path).get("", {})
    if "texts" not in held or held["texts"].dim() != 2 or held["texts"].is_floating_point():
        raise KDBenchError(f"{path}: found no integer texts (N, L), expected a file that teacher.corpus made")
    texts = held["texts"].long().numpy()
    if texts.shape[1] != length:
        raise KDBenchError(f"{path}: found texts of {texts.shape[1]} words, expected {length}: written for other data")
    low, high = (int(texts.min()), int(texts.max())) if texts.size else (0, 0)
    there = texts != NONE
    ended = bool(there[:, :1].all() and (there[:, :-1] >= there[:, 1:]).all())  # nothing stands behind an end
    if not (NONE if ended else 0) <= low <= high < words:
        raise KDBenchError(f"{path}: found words {low} to {high}, expected 0 to {words - 1}: written for other data")
    given = held["given"].long().numpy() if "given" in held else np.zeros(len(texts), dtype=np.int64)
    return Corpus(texts, given, f"corpus:{len(texts)} texts{_who(folder)}")


def _who(folder: Path) -> str:
    try:
        facts = json.loads((folder / MANIFEST).read_text("utf-8"))
        options = facts["options"]
        return f" by {facts['writer'][:8]}, temperature {options['temperature']}, seed {options['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
