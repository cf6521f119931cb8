"""Short texts about one of several topics, made up by a grammar whose exact posterior of the topic is known.

A topic prefers some words wherever they stand and others by the slot of the sentence: one noun as a subject, another
one as an object. A model that knows how often each word comes but not where misses part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from kdbench.base import rng
from tasks.text.grammar import ADVERBS, PLURAL, PREPOSITIONS, SINGULAR, SLOTS, STOP, TOPICS, WORDS, Share, moves
from tasks.text.hmm import Chain

#: Words of each part of speech: of a sentence about one thing, and about several, in the same order.
SPEECH: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "determiner": (SINGULAR, PLURAL),
    "adjective": (tuple(topic[3] for topic in TOPICS),) * 2,
    "noun": (
        tuple(noun[0] for topic in TOPICS for noun in topic[:2]),
        tuple(noun[1] for topic in TOPICS for noun in topic[:2]),
    ),
    "preposition": (PREPOSITIONS,) * 2,
    "verb": (tuple(topic[2][0] for topic in TOPICS), tuple(topic[2][1] for topic in TOPICS)),
    "adverb": (ADVERBS,) * 2,
    "stop": ((STOP,),) * 2,
}
#: Those of which every topic prefers words of its own.
OWN = ("adjective", "noun", "verb")


@dataclass(frozen=True)
class Topics:
    """Options of the made-up texts.

    Attributes:
        texts: How many there are to learn from, validation included.
        test: Further ones, of test.
        length: Words of each.
        topics: How many, equally often.
        concentration: Of the Dirichlet law of what a topic prefers; the smaller, the easier they are told.
        shared: Share of what a topic prefers that is the same in all slots of a part of speech.
        noise: Share of the words that are any word at all.
        seed: Of the texts and of what a topic prefers.
    """

    texts: PositiveInt = 6700
    test: PositiveInt = 2000
    length: Annotated[int, Field(ge=2)] = 12
    topics: Annotated[int, Field(ge=2)] = 16
    concentration: Annotated[float, Field(gt=0)] = 0.105
    shared: Annotated[float, Field(ge=0, le=1)] = 0.5
    noise: Share = 0.02
    seed: int = 0


def names(options: Topics) -> tuple[str, ...]:
    """Returns what the topics are called."""
    return tuple(f"topic {number + 1}" for number in range(options.topics))


def chains(options: Topics) -> list[Chain]:
    """Returns the law of the texts of each topic: states are counted by slot, then number (one, many)."""
    move = moves(np.ones((1, 1)))
    start = np.zeros((len(SLOTS), 2))
    start[SLOTS.index("determiner")] = 0.5
    return [Chain(start.reshape(-1), move, _emission(options, topic)) for topic in range(options.topics)]


def _emission(options: Topics, topic: int) -> np.ndarray:
    """Returns what each state of a topic says, ``(states, words)``."""
    column = {word: index for index, word in enumerate(WORDS)}
    says = np.zeros((len(SLOTS), 2, len(WORDS)))
    for index, name in enumerate(SLOTS):
        slot = name.removesuffix("_one").removesuffix("_many")
        (speech,) = {*SPEECH} & {*slot.split("_")}
        shares = _preferred(options, topic, slot, speech)
        for number in range(2):
            said = {"_one": 0, "_many": 1}.get(name[len(slot) :], number)
            says[index, number, [column[word] for word in SPEECH[speech][said]]] = shares
    law: np.ndarray = (1 - options.noise) * says + options.noise / len(WORDS)
    return law.reshape(-1, len(WORDS))


def _preferred(options: Topics, topic: int, slot: str, speech: str) -> np.ndarray:
    """Returns how often a topic takes each word of a part of speech in a slot."""
    size = len(SPEECH[speech][0])
    if speech not in OWN:  # alike for all topics
        return rng.numpy(options.seed, "topics", speech).dirichlet(np.full(size, 4.0))
    of_speech, of_slot = (
        rng.numpy(options.seed, "topics", topic, name).dirichlet(np.full(size, options.concentration))
        for name in (speech, f"slot {slot}")
    )
    shares: np.ndarray = options.shared * of_speech + (1 - options.shared) * of_slot
    return shares


def posterior(laws: list[Chain], texts: np.ndarray) -> np.ndarray:
    """Returns the probability of each topic given a text, by Bayes' rule with equally likely topics.

    Args:
        laws: Of the texts of each of C topics.
        texts: ``(N, L)`` integers of words.

    Returns:
        ``(N, C)`` float64.
    """
    logs = np.stack([law.likelihood(texts) for law in laws], 1)
    shares = np.exp(logs - logs.max(1, keepdims=True))
    found: np.ndarray = shares / shares.sum(1, keepdims=True)
    return found


def make(options: Topics) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns texts ``(N, length)``, integers of words, and their topics ``(N,)``: to learn from, and of test.

    The topic that a text was written about is a draw from its posterior.
    """
    laws = chains(options)
    return _drawn(options, laws, "learn", options.texts), _drawn(options, laws, "test", options.test)


def _drawn(options: Topics, laws: list[Chain], name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = rng.numpy(options.seed, "topics", name)
    topics = draw.integers(options.topics, size=count)
    texts = np.empty((count, options.length), dtype=np.int64)
    for topic, law in enumerate(laws):
        own = np.flatnonzero(topics == topic)
        texts[own] = law.sample(len(own), options.length, rng.numpy(options.seed, "topics", name, topic))
    return texts, topics
