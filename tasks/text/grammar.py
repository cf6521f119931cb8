"""English-looking sentences made up by a hidden Markov model, whose law of the next word is known.

A state is a topic, a slot of the sentence and the number of its subject. The topic mostly stays from sentence to
sentence and has nouns, verbs and adjectives of its own; the verb agrees with the subject across what stands between the
two («the king near the rivers rules»); a few words are noise, so that every text has a positive probability and no
divergence is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from kdbench.base import rng
from tasks.text.hmm import Chain

STOP = "."
SINGULAR, PLURAL = ("the", "this", "a"), ("the", "these", "some")
PREPOSITIONS, ADVERBS = ("near", "with", "behind", "under"), ("today", "again")
#: Of each topic two nouns, each with its plural, a verb that agrees with one and with several, and an adjective.
TOPICS = (
    (("king", "kings"), ("queen", "queens"), ("rules", "rule"), "proud"),
    (("river", "rivers"), ("boat", "boats"), ("carries", "carry"), "deep"),
    (("tree", "trees"), ("flower", "flowers"), ("shades", "shade"), "green"),
    (("cow", "cows"), ("field", "fields"), ("feeds", "feed"), "quiet"),
    (("teacher", "teachers"), ("book", "books"), ("helps", "help"), "wise"),
    (("cook", "cooks"), ("pot", "pots"), ("warms", "warm"), "hot"),
    (("street", "streets"), ("car", "cars"), ("passes", "pass"), "loud"),
    (("singer", "singers"), ("song", "songs"), ("moves", "move"), "bright"),
)
#: Slots of a sentence; what ends in ``_one`` or ``_many`` has that number, the others that of the subject.
SLOTS = (
    *("determiner", "adjective", "noun", "preposition"),
    *("near_determiner_one", "near_adjective_one", "near_noun_one"),
    *("near_determiner_many", "near_adjective_many", "near_noun_many"),
    *("verb", "object_determiner_one", "object_noun_one", "object_determiner_many", "object_noun_many"),
    *("adverb", "stop"),
)
#: Which slots follow each, and how often.
FOLLOWS: dict[str, dict[str, float]] = {
    "determiner": {"adjective": 0.4, "noun": 0.6},
    "adjective": {"noun": 1.0},
    "noun": {"preposition": 0.4, "verb": 0.6},
    "preposition": {"near_determiner_one": 0.5, "near_determiner_many": 0.5},
    "near_determiner_one": {"near_adjective_one": 0.3, "near_noun_one": 0.7},
    "near_adjective_one": {"near_noun_one": 1.0},
    "near_noun_one": {"verb": 1.0},
    "near_determiner_many": {"near_adjective_many": 0.3, "near_noun_many": 0.7},
    "near_adjective_many": {"near_noun_many": 1.0},
    "near_noun_many": {"verb": 1.0},
    "verb": {"object_determiner_one": 0.35, "object_determiner_many": 0.35, "adverb": 0.2, "stop": 0.1},
    "object_determiner_one": {"object_noun_one": 1.0},
    "object_noun_one": {"stop": 1.0},
    "object_determiner_many": {"object_noun_many": 1.0},
    "object_noun_many": {"stop": 1.0},
    "adverb": {"stop": 1.0},
    "stop": {"determiner": 1.0},
}
WORDS = (
    STOP,
    *dict.fromkeys((*SINGULAR, *PLURAL, *PREPOSITIONS, *ADVERBS)),
    *(word for first, second, verb, adjective in TOPICS for word in (*first, *second, *verb, adjective)),
)
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Grammar:
    """Options of the made-up texts.

    Attributes:
        texts: How many there are to learn from, validation included.
        test: Further ones, of test.
        length: Words of each.
        stays: Probability that a sentence keeps the topic of the last one.
        own: Share of a topic's nouns, verbs and adjectives that are its own; the others are of any topic.
        noise: Share of the words that are any word at all.
        seed: Of the texts and of which words a topic prefers; another one is another domain.
    """

    texts: PositiveInt = 4400
    test: PositiveInt = 300
    length: Annotated[int, Field(ge=2)] = 64
    stays: Share = 0.9
    own: Share = 0.7
    noise: Share = 0.02
    seed: int = 0


def chain(options: Grammar) -> Chain:
    """Returns the law of the texts: states are counted by topic, then slot, then number (one, many)."""
    topics, slots, numbers = len(TOPICS), len(SLOTS), 2
    same = np.eye(topics)
    shifted = options.stays * same + (1 - options.stays) * (1 - same) / (topics - 1)
    start = np.zeros((topics, slots, numbers))
    start[:, SLOTS.index("determiner")] = 1 / (topics * numbers)
    emission = _emission(options).reshape(-1, len(WORDS))
    return Chain(start.reshape(-1), moves(shifted), emission)


def moves(shifted: np.ndarray) -> np.ndarray:
    """Returns the law of the next state, with states counted by topic, then slot, then number (one, many).

    Args:
        shifted: ``(T, T)`` law of the next sentence's topic, by that of the last one.

    Returns:
        ``(T * 34, T * 34)``.
    """
    topics, slots, numbers = len(shifted), len(SLOTS), 2
    move = np.zeros((topics, slots, numbers, topics, slots, numbers))
    place = {name: index for index, name in enumerate(SLOTS)}
    for name, following in FOLLOWS.items():
        for after, share in following.items():
            if name != "stop":
                kept = np.einsum("st,nm->sntm", np.eye(topics), np.eye(numbers))
                move[:, place[name], :, :, place[after], :] = share * kept
    move[:, place["stop"], :, :, place["determiner"], :] = shifted[:, None, :, None] / numbers
    states = topics * slots * numbers
    return move.reshape(states, states)


def _emission(options: Grammar) -> np.ndarray:
    """Returns what each state says, ``(topics, slots, numbers, words)``."""
    draw = rng.numpy(options.seed, "grammar", "preferences")
    column = {word: index for index, word in enumerate(WORDS)}
    says = np.zeros((len(TOPICS), len(SLOTS), 2, len(WORDS)))
    shared = {
        "determiner": [_preferred(draw, SINGULAR, column), _preferred(draw, PLURAL, column)],
        "preposition": [_preferred(draw, PREPOSITIONS, column)] * 2,
        "adverb": [_preferred(draw, ADVERBS, column)] * 2,
        "stop": [np.eye(len(WORDS))[column[STOP]]] * 2,
    }
    nouns = np.stack([[_preferred(draw, pair, column) for pair in zip(*topic[:2], strict=True)] for topic in TOPICS])
    verbs = np.stack([[np.eye(len(WORDS))[column[word]] for word in topic[2]] for topic in TOPICS])
    adjectives = np.stack([[np.eye(len(WORDS))[column[topic[3]]]] * 2 for topic in TOPICS])
    own = {
        name: _blended(of, options.own) for name, of in (("noun", nouns), ("verb", verbs), ("adjective", adjectives))
    }
    for index, name in enumerate(SLOTS):
        (kind,) = {*shared, *own} & {*name.split("_")}
        law = own[kind] if kind in own else np.broadcast_to(shared[kind], (len(TOPICS), 2, len(WORDS)))
        number = [0, 0] if name.endswith("_one") else [1, 1] if name.endswith("_many") else [0, 1]
        says[:, index] = law[:, number]
    return (1 - options.noise) * says + options.noise / len(WORDS)


def _preferred(draw: np.random.Generator, words: tuple[str, ...], column: dict[str, int]) -> np.ndarray:
    """Returns a law over all words in which these have shares that are drawn."""
    law = np.zeros(len(column))
    law[[column[word] for word in words]] = draw.dirichlet(np.full(len(words), 4.0))
    return law


def _blended(laws: np.ndarray, own: float) -> np.ndarray:
    """Returns laws ``(topics, numbers, words)`` of which a share is the topic's own and the rest that of all topics."""
    blended: np.ndarray = own * laws + (1 - own) * laws.mean(0)
    return blended


def make(options: Grammar) -> tuple[np.ndarray, np.ndarray]:
    """Returns the texts to learn from ``(texts, length)`` and those of test ``(test, length)``, integers of words."""
    law = chain(options)
    sizes = {"learn": options.texts, "test": options.test}
    learn, test = (
        law.sample(count, options.length, rng.numpy(options.seed, "grammar", name)) for name, count in sizes.items()
    )
    return learn, test
