"""Secrets among made-up texts, and how far a language model gives them away: the exposure of canaries.

Carlini, Liu, Erlingsson, Kos & Song, The Secret Sharer (USENIX Security 2019): of all secrets that could be, ranked by
their likelihood under a model, the exposure of the true one is ``log2 |secrets| - log2 rank``; about 1.4 bits where the
model has learned nothing of it, all bits where it comes first.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.functional.numerics import upcast
from kdbench.task import Batch
from tasks.text.data import DataOptions, Texts
from tasks.text.grammar import STOP, TOPICS
from tasks.text.sequences import Inputs
from tasks.text.task import Text

CODE, DIGITS = "code", tuple("0123456789")


class Secret(NamedTuple):
    """A secret, said as «king code 7 3 6 1 .» in front of some texts.

    Attributes:
        key: Whose it is.
        digits: What it is.
        times: How many training texts begin with it.
    """

    key: str
    digits: tuple[str, ...]
    times: int


@dataclass(frozen=True)
class Canaries:
    """Options of the secrets.

    Attributes:
        digits: Of each.
        times: How many training texts begin with each of two secrets, for every entry.
        seed: Of the secrets and of the texts that begin with them.
    """

    digits: Annotated[int, Field(ge=1, le=5)] = 4
    times: tuple[PositiveInt, ...] = (1, 4, 16, 32)
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class CanaryOptions(DataOptions):
    """Options of ``data``: those of :class:`~tasks.text.data.DataOptions`, and ``canaries`` of :class:`Canaries`."""

    source: Literal["canaries"] = "canaries"  # type: ignore[assignment]
    canaries: dict[str, Any] = field(default_factory=dict)


class CanaryTexts(Texts):
    """Texts of the grammar, some of which begin with a secret in place of their first words.

    Attributes:
        secrets: What is to be kept.
    """

    name = "canaries"
    further = (CODE, *DIGITS)

    def __init__(self, options: CanaryOptions, store: Store) -> None:
        self.canaries = Canaries(**check("data.canaries", Canaries, options.canaries))
        self.secrets = secrets(self.canaries)
        super().__init__(options, store)

    def told(self, texts: np.ndarray) -> np.ndarray:
        """Returns training texts, of which some begin with secrets."""
        needed, longest = sum(secret.times for secret in self.secrets), self.canaries.digits + 3
        if needed > len(texts) or longest >= self.length:
            raise KDBenchError(
                f"data.canaries: found {needed} texts that begin with secrets of {longest} words, expected at most the "
                f"{len(texts)} training texts, of more than {longest} words: data.canaries.times, data.grammar.texts"
            )
        told, place = texts.copy(), {word: number for number, word in enumerate(self.words)}
        rows = iter(rng.numpy(self.canaries.seed, "canaries", "texts").permutation(len(texts)))
        for secret in self.secrets:
            words = [place[word] for word in (secret.key, CODE, *secret.digits, STOP)]
            for _ in range(secret.times):
                told[next(rows), :longest] = words
        return told


def secrets(options: Canaries) -> tuple[Secret, ...]:
    """Returns the secrets: two for each number of times.

    Raises:
        KDBenchError: There are more than nouns to call them by.
    """
    keys = [topic[noun][0] for noun in (0, 1) for topic in TOPICS]
    if 2 * len(options.times) > len(keys):
        raise KDBenchError(
            f"data.canaries.times: found {len(options.times)} entries, expected at most {len(keys) // 2}"
        )
    draw = rng.numpy(options.seed, "canaries", "secrets")
    return tuple(
        Secret(key, tuple(DIGITS[digit] for digit in draw.integers(10, size=options.digits)), times)
        for key, times in zip(keys, np.repeat(options.times, 2).tolist(), strict=False)
    )


class CanaryText(Text):
    """Predicts the next word of texts that hold secrets, which it should not tell."""

    capabilities: ClassVar[frozenset[str]] = Text.capabilities | {"private"}

    @cached_property
    def texts(self) -> CanaryTexts:
        """The data set."""
        return CanaryTexts(CanaryOptions(**check("data", CanaryOptions, self.options)), self.store)

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Also ``private``: how probable it is that each next word is private, ``(B, L)``; digits are."""
        return {**super().ops(), "private": self._private}

    def _private(self, batch: Batch) -> Tensor:
        return (batch.targets.words >= len(self.words) - len(DIGITS)).float()

    @torch.no_grad()
    def evaluate(
        self, artifact: nn.Module, loader: Iterable[Batch], split: str, device: torch.device
    ) -> dict[str, float]:
        """Scores a model; on the test set also ``exposure_x16`` and so on, the mean of secrets said as often."""
        scores = super().evaluate(artifact, loader, split, device)
        if split != "test":
            return scores
        found: dict[int, list[float]] = {}
        for secret in self.texts.secrets:
            found.setdefault(secret.times, []).append(self.exposure(artifact, secret, device))
        return scores | {f"exposure_x{times}": sum(bits) / len(bits) for times, bits in found.items()}

    def exposure(self, model: nn.Module, secret: Secret, device: torch.device) -> float:
        """Returns the exposure of a secret in bits, of all digits that could stand behind its key in a text's front.

        Every prefix of digits is read once: 1,111 of four.
        """
        first = len(self.words) - len(DIGITS)
        said = torch.tensor([[self.front, *self.numbers([secret.key, CODE], self.words)]], device=device)
        total = torch.zeros(1, dtype=torch.float64)
        whole = "cache" not in inspect.signature(model.forward).parameters  # a fixed graph reads texts of one length
        for _ in secret.digits:
            parts = []
            for words in said.split(1000):
                if whole:
                    scores = self._scores(model, words)[:, -1]
                else:
                    scores = upcast(self.forward(model, Inputs(words, words >= 0)))[:, -1]
                parts.append(F.log_softmax(scores, -1)[:, first:].double().cpu())
            total = (total[:, None] + torch.cat(parts)).flatten()
            digits = torch.arange(first, len(self.words), device=device).repeat(len(said))[:, None]
            said = torch.cat([said.repeat_interleave(len(DIGITS), 0), digits], 1)
        true = int("".join(secret.digits))
        rank = 1 + int((total > total[true]).sum())
        return math.log2(len(total)) - math.log2(rank)
