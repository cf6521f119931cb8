"""Questions of several hops over a made-up graph, with and without the path as a trace.

Every relation is a permutation of the people, so that «ada boss friend ?» has one answer: whoever is the friend of the
boss of ada. With traces a text spells out the path, «ada boss friend ? boss kim friend joe .»; without, it ends in the
answer alone, «ada boss friend ? joe .». Either way the answer is the last word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from kdbench.base import rng
from kdbench.base.digest import digest
from kdbench.base.instantiate import check
from kdbench.errors import KDBenchError
from kdbench.splits import limited
from tasks.text import corpus
from tasks.text.loading import TextData, content, cuts
from tasks.text.options import Options
from tasks.text.sequences import NONE, Said, joined

END, ASKED = ".", "?"
RELATIONS = ("boss", "friend", "doctor", "tutor", "rival", "guest")
PEOPLE = (
    *("ada", "alan", "amy", "ben", "bob", "carl", "cleo", "dan", "dora", "emma", "eric", "eve", "finn", "gina", "greg"),
    *("hugo", "ida", "ivan", "jack", "jane", "joe", "kim", "kurt", "lea", "leo", "mary", "max", "nina", "noah", "olga"),
    *("otto", "paul", "pia", "rita", "rosa", "sam", "tina", "tom", "vera", "yann"),
)
#: Hops of the longest question; the number of the first of :data:`RELATIONS` and what stands in front of them.
HOPS, FIRST = 3, 2

#: A question: who it begins with, and the relations that it follows, as places among people and relations.
Question = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """Options of the graph and its questions.

    Attributes:
        people: Nodes.
        relations: Kinds of edges; each is a permutation of the people.
        questions: Of two and of three hops, to learn from, validation included.
        test: Of two and of three hops, to be tested.
        seed: Of the graph and of which questions go where.
    """

    people: Annotated[int, Field(ge=2, le=len(PEOPLE))] = 30
    relations: Annotated[int, Field(ge=1, le=len(RELATIONS))] = 4
    questions: tuple[PositiveInt, PositiveInt] = (360, 480)
    test: tuple[PositiveInt, PositiveInt] = (120, 400)
    seed: NonNegativeInt = 0

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: the full stop, the question mark, relations and people."""
        return (END, ASKED, *RELATIONS[: self.relations], *PEOPLE[: self.people])

    @cached_property
    def edges(self) -> np.ndarray:
        """``(relations, people)``: to whom each relation leads from everybody."""
        draw = rng.numpy(self.seed, "kgqa", "graph")
        return np.stack([draw.permutation(self.people) for _ in range(self.relations)])

    @property
    def person(self) -> int:
        """The number of the first of the people in the vocabulary."""
        return FIRST + self.relations

    def path(self, question: Question) -> list[int]:
        """Returns whom the hops of a question lead to, one after another."""
        at, found = question[0], []
        for relation in question[1]:
            at = int(self.edges[relation, at])
            found.append(at)
        return found

    def text(self, question: Question, trace: bool) -> list[int]:
        """Returns the words of a question and its answer, the full stop behind."""
        start, relations = question
        asked = [self.person + start, *(FIRST + relation for relation in relations), 1]
        path = [self.person + at for at in self.path(question)]
        steps = itertools.chain(*zip(asked[1:-1], path, strict=True))
        return [*asked, *(steps if trace else path[-1:]), 0]

    def question(self, text: Sequence[int]) -> Question | None:
        """Returns the question that a text begins with, None where it is none."""
        if 1 not in text:
            return None
        start, *relations = [int(word) for word in text[: list(text).index(1)]] or [0]
        known = all(FIRST <= word < self.person for word in relations)
        if not relations or not known or not self.person <= start < len(self.words):
            return None
        return start - self.person, tuple(word - FIRST for word in relations)

    def right(self, text: Sequence[int]) -> tuple[bool, bool]:
        """Says whether the last word of a text is the answer to the question in front, and whether all of it is a path.

        A text that does not end is not answered.
        """
        question, words = self.question(text), [int(word) for word in text]
        if question is None or 0 not in words:
            return False, False
        whole = words[: words.index(0) + 1]
        answered = whole[-2] == self.person + self.path(question)[-1]
        return answered, whole == self.text(question, True)


def drawn(graph: Graph) -> tuple[list[Question], list[Question]]:
    """Returns the questions of two and three hops to learn from, and those of the test, which are others.

    Raises:
        KDBenchError: There are not as many.
    """
    learn: list[Question] = []
    test: list[Question] = []
    for hops, few, held in zip(range(2, HOPS + 1), graph.questions, graph.test, strict=True):
        ways = list(itertools.product(range(graph.people), itertools.product(range(graph.relations), repeat=hops)))
        if few + held > len(ways):
            raise KDBenchError(
                f"data.kgqa: found {few} questions and {held} test questions of {hops} hops, expected at most "
                f"{len(ways)} together: fewer of them, or more people or relations"
            )
        order = rng.numpy(graph.seed, "kgqa", "questions", hops).permutation(len(ways))
        learn += [ways[place] for place in order[:few]]
        test += [ways[place] for place in order[few : few + held]]
    return learn, test


@dataclass(frozen=True)
class QuestionOptions(Options):
    """Options of ``data``; ``labels`` and ``unlabelled`` count questions of several hops, the edges come beside.

    Attributes:
        source: ``kgqa``.
        kgqa: Of :class:`Graph`.
        traces: Whether training texts spell out the path.
        corpus: Folder of texts that a model wrote, which take the place of the training texts.
        beside: Leaves the training texts beside them.
        prompt: A question is what is given of a text, so no further words are.
    """

    source: Literal["kgqa"] = "kgqa"
    kgqa: dict[str, Any] = field(default_factory=dict)
    traces: bool = False
    corpus: str | None = None
    beside: bool = False
    prompt: ClassVar[int] = 0


class Questions:
    """Questions and answers. Ids count through train (every edge, then those with labels), validation and test.

    Attributes:
        name: Of the data set.
        graph: What they are about.
        words: The vocabulary; the first is the full stop, in front of every text and behind it.
        length: Words of the longest text with a trace.
        train: Training texts: every edge as a question of one hop, and those of several.
        val: Validation texts, of several hops.
        test: Test texts, of several hops.
        digest: Of content and cuts.
        learned: Of what is not test.
        notes: What a record says of texts that a model wrote.
    """

    name: ClassVar[str] = "kgqa"

    def __init__(self, options: QuestionOptions) -> None:
        self.options = options
        self.graph = Graph(**check("data.kgqa", Graph, options.kgqa))
        self.words = self.graph.words
        self.length = 3 * HOPS + 3
        learn, test = drawn(self.graph)
        found = cuts(options, [_name(one) for one in learn], [len(one[1]) for one in learn])
        edges: list[Question] = [
            (start, (relation,)) for relation in range(self.graph.relations) for start in range(self.graph.people)
        ]
        known = found.supervised
        if known is not None:
            known = np.concatenate([np.ones(len(edges), dtype=bool), known])
        self.train = self._said([*edges, *(learn[place] for place in found.train)], 0, known)
        self.notes: tuple[str, ...] = ()
        if options.corpus is not None:
            written = corpus.read(Path(options.corpus), len(self.words), self.length)
            own = self.train if options.beside else None
            self.train, self.notes = joined(own, written.texts, written.given), (written.note,)
        self.val = self._said([learn[place] for place in found.val], len(self.train))
        few = limited([_name(one) for one in test], options.test, "test")
        self.test = self._said([test[place] for place in few], len(self.train) + len(self.val))
        said = [] if self.train.supervised is None else self.train.supervised.tolist()
        given = [] if self.train.given is None else self.train.given.tolist()
        self.learned = digest(
            [content(self.train.texts), said, given, content(self.val.texts), content(self.graph.edges), self.words]
        )
        self.digest = digest([self.learned, content(self.test.texts)])

    def _said(self, questions: Sequence[Question], first: int, supervised: np.ndarray | None = None) -> Said:
        return said(self.graph, questions, self.options.traces, self.length, first, supervised)

    def module(self, seed: int) -> TextData:
        """Returns the loaders; the order follows ``seed``."""
        return TextData(self, seed)


def said(
    graph: Graph,
    questions: Iterable[Question],
    traces: bool,
    length: int,
    first: int = 0,
    supervised: np.ndarray | None = None,
) -> Said:
    """Returns questions as texts whose answers are to be predicted.

    Args:
        graph: What they are about.
        questions: N of them.
        traces: Whether the path is spelled out.
        length: Words of a text, filled up behind its end.
        first: Id of the first.
        supervised: ``(N,)`` those whose answers the supervised loss reads, or None for all.
    """
    rows, given = [], []
    for question in questions:
        text = graph.text(question, traces)
        rows.append(text + [NONE] * (length - len(text)))
        given.append(len(question[1]) + 2)
    texts = np.array(rows, dtype=np.int64).reshape(-1, length)
    return Said(texts, first, supervised, given=np.array(given, dtype=np.int64))


def _name(question: Question) -> str:
    return "/".join([PEOPLE[question[0]], *(RELATIONS[relation] for relation in question[1])])


def opened(options: Mapping[str, Any]) -> Questions:
    """Opens the data set.

    Args:
        options: Of :class:`QuestionOptions`.

    Raises:
        KDBenchError: Options that are not as they should be.
    """
    return Questions(QuestionOptions(**check("data", QuestionOptions, options)))
