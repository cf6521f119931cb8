"""A citation graph made up: papers arrive one by one, are about a field and a topic, and cite earlier ones.

Paper t is a function of the seed, of t and of the papers before it, so that a smaller set is the beginning of a larger
one. Words tell the field of most papers, of some nothing; citations tell it too, by a law that may be assortative (a
field cites itself) or a cycle (a field builds on the next one, so that neighbours differ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.graph.layout import Graph

FIELDS = ("algebra", "botany", "chemistry", "dynamics", "ecology", "finance")
#: Topics of a field, words in all, words of a field's and of a topic's own.
TOPICS, WORDS, OWN_FIELD, OWN_TOPIC = 3, 500, 15, 12
#: Of the words that tell something: the share of a topic, half of which are its rival's.
OF_TOPIC = 0.65
#: What speaks for a paper to be cited: exponent of its citations, years until it is forgotten, the same topic.
RICH, MEMORY, KINDRED = 0.8, 800.0, 4.0
#: Validation papers of a field.
HELD = 30

Share = Annotated[float, Field(ge=0, le=1)]
Mode = Literal["assortative", "cycle"]


@dataclass(frozen=True)
class Citations:
    """Options of the made-up papers.

    Attributes:
        papers: How many.
        seed: Of everything.
        mode: ``assortative``, a field mostly cites itself; ``cycle``, the next one.
        homophily: Probability that a citation goes to the own field.
        info: Share of the words of a paper that tell its field.
        blank: Share of the papers whose words tell nothing.
        cites: Citations of a paper that it tries, in the mean; one at least.
        per_class: Labelled papers of a field.
        newest: Share of the papers, the last ones, that are cold.
    """

    papers: Annotated[int, Field(ge=50)] = 2500
    seed: NonNegativeInt = 0
    mode: Mode = "assortative"
    homophily: Share = 0.8
    info: Share = 0.35
    blank: Share = 0.15
    cites: Annotated[float, Field(ge=1)] = 3.0
    per_class: PositiveInt = 15
    newest: Annotated[float, Field(gt=0, lt=1)] = 0.2


def make(options: Citations) -> Graph:
    """Writes the papers."""
    laws = _Laws(options)
    fields, topics, words, edges, blank = _papers(options, laws)
    rows = np.repeat(np.arange(options.papers), [len(own) for own in words])
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, np.concatenate(words))), (options.papers, WORDS))
    return Graph(
        name="citations",
        words=matrix,
        labels=fields,
        edges=edges,
        classes=FIELDS,
        splits=_splits(options, fields),
        directed=True,
        arrival=np.arange(options.papers),
        blank=blank,
        law=laws.posterior(matrix).astype(np.float32),
        embedded=True,
    )


def law(options: Citations, words: sp.csr_matrix) -> np.ndarray:
    """Returns the probability ``(N, K)`` of each field by the words ``(N, V)`` of papers, for who knows the options."""
    return _Laws(options).posterior(words)


class _Laws:
    """The tables that all papers share: words of fields and topics, prior of fields, who cites whom.

    Args:
        options: Of the papers.
    """

    def __init__(self, options: Citations) -> None:
        draw = np.random.default_rng([options.seed, 0])
        count = len(FIELDS)
        self.prior = np.linspace(1.3, 0.7, count) / count
        background = np.empty(WORDS)
        background[draw.permutation(WORDS)] = 1 / np.arange(1, WORDS + 1)
        self.background = background / background.sum()
        dealt = draw.permutation(WORDS)
        self.field_words = dealt[: count * OWN_FIELD].reshape(count, OWN_FIELD)
        rest = dealt[count * OWN_FIELD :][: count * TOPICS * OWN_TOPIC]
        self.topic_words = rest.reshape(count, TOPICS, OWN_TOPIC)
        self.info, self.blank = options.info, options.blank
        own = np.eye(count)
        if options.mode == "assortative":
            # What does not go to the own field goes to the others by their prior.
            others = np.where(own > 0, 0, self.prior)
            self.cited = options.homophily * own + (1 - options.homophily) * others / others.sum(1, keepdims=True)
        else:
            following = np.roll(own, 1, axis=1)
            others = (1 - options.homophily) * (1 - own - following) / (count - 2)
            self.cited = options.homophily * own + (1 - options.homophily) * 7 / 9 * following + others * 2 / 9
        self.cited /= self.cited.sum(1, keepdims=True)

    def rival(self, chosen: int, topic: int) -> np.ndarray:
        """Returns the words of a topic's rival in another field."""
        return np.asarray(self.topic_words[(chosen + 1 + topic) % len(FIELDS), topic])

    def posterior(self, words: sp.csr_matrix) -> np.ndarray:
        """Returns the probability of each field by a paper's words, under the laws that they were drawn by."""
        laws = np.empty((len(FIELDS), TOPICS, WORDS))
        for c, j in np.ndindex(len(FIELDS), TOPICS):
            told = np.zeros(WORDS)
            told[self.field_words[c]] += (1 - OF_TOPIC) / OWN_FIELD
            for own in (self.topic_words[c, j], self.rival(c, j)):
                told[own] += OF_TOPIC / 2 / OWN_TOPIC
            laws[c, j] = self.info * told + (1 - self.info) * self.background
        flat = np.log(np.maximum(laws.reshape(-1, WORDS), 1e-12))
        full = (words @ flat.T).reshape(-1, len(FIELDS), TOPICS)
        void = words @ np.log(self.background)
        # A paper of three words or fewer may be one that tells nothing.
        short = (np.diff(words.indptr) <= 3) * self.blank
        law = np.log(np.maximum(1 - short, 1e-12))[:, None, None] + full
        both = np.logaddexp(law, (np.log(np.maximum(short, 1e-300)) + void)[:, None, None])
        scores = np.logaddexp.reduce(both, axis=2) + np.log(self.prior)
        found: np.ndarray = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
        return found


def _papers(options: Citations, laws: _Laws) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """Returns fields, topics, the words of each paper, its citations, and which papers tell nothing."""
    count = options.papers
    fields, topics = np.empty(count, np.int64), np.empty(count, np.int64)
    fitness, times, blank = np.empty(count), np.zeros(count), np.zeros(count, bool)
    words: list[np.ndarray] = []
    edges: list[tuple[int, int]] = []
    for t in range(count):
        draw = np.random.default_rng([options.seed, 1, t])
        c = fields[t] = draw.choice(len(FIELDS), p=laws.prior)
        j = topics[t] = draw.integers(TOPICS)
        fitness[t] = draw.lognormal(0, 0.6)
        blank[t] = draw.random() < options.blank
        words.append(_words(draw, laws, int(c), int(j), bool(blank[t])))
        wanted = draw.choice(len(FIELDS), size=1 + draw.poisson(options.cites - 1), p=laws.cited[c])
        alike = (fields[:t] == c) & (topics[:t] == j)
        pull = fitness[:t] * (times[:t] + 1) ** RICH * np.exp((np.arange(t) - t) / MEMORY) * np.where(alike, KINDRED, 1)
        found = set()
        for field in wanted:
            drawn, law = draw.random(), np.cumsum(np.where(fields[:t] == field, pull, 0))
            if t and law[-1] > 0:
                found.add(int(np.searchsorted(law, drawn * law[-1], "right")))
        times[[*found]] += 1
        edges += [(t, cited) for cited in sorted(found)]
    return fields, topics, words, np.array(edges, np.int64).reshape(-1, 2), blank


def _words(draw: np.random.Generator, laws: _Laws, field: int, topic: int, blank: bool) -> np.ndarray:
    """Draws the words of a paper, each kept once."""
    length = int(draw.integers(1, 4)) if blank else 2 + int(draw.poisson(draw.gamma(2, 6)))
    kind, rival = draw.random((2, length))
    tells = (draw.random(length) < laws.info) & (not blank)
    own = laws.topic_words[field, topic][draw.integers(OWN_TOPIC, size=length)]
    other = laws.rival(field, topic)[draw.integers(OWN_TOPIC, size=length)]
    common = laws.field_words[field][draw.integers(OWN_FIELD, size=length)]
    about = np.where(kind < OF_TOPIC, np.where(rival < 0.5, own, other), common)
    return np.unique(np.where(tells, about, draw.choice(WORDS, size=length, p=laws.background)))


def _splits(options: Citations, fields: np.ndarray) -> dict[str, np.ndarray]:
    """Cuts the newest papers off, and deals the labelled papers of each field by a number of their own."""
    first = options.papers - max(1, round(options.newest * options.papers))
    order = np.random.default_rng([options.seed, 2]).random(options.papers)
    train, val, test = [], [], []
    for field in range(len(FIELDS)):
        own = np.flatnonzero(fields[:first] == field)
        own = own[np.argsort(order[own])]
        few, held = min(options.per_class, len(own) // 3), min(HELD, len(own) // 3)
        train.append(own[:few])
        val.append(own[few : few + held])
        test.append(own[few + held :])
    cold = np.arange(first, options.papers)
    return {n: np.sort(np.concatenate(x)) for n, x in (("train", train), ("val", val), ("test", test))} | {"cold": cold}
