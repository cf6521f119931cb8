"""Questions over a graph: as texts, as they are answered, and what the answers are worth."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.text.answers import QuestionAnswering, pass_at
from tasks.text.kgqa import Graph
from tasks.text.sequences import NONE
from tests.tasks.text import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> QuestionAnswering:
    return tiny.questions(tmp_path_factory.mktemp("cache"), traces=True)


@pytest.fixture(scope="module")
def model(made) -> nn.Module:
    with rng.scope(0, "model"):
        return made.build(tiny.NET).eval()


class Knows(nn.Module):
    """Says the text that the graph has for a question, another person in its place where it is told to err."""

    def __init__(self, task: QuestionAnswering, trace: bool, wrong_hops: int = 0) -> None:
        super().__init__()
        self.task, self.trace, self.wrong_hops = task, trace, wrong_hops

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        graph = self.task.graph
        found = torch.zeros(*texts.shape, len(self.task.words))
        for row, text in enumerate(texts.tolist()):
            question = graph.question(text[1:])
            if question is None:
                continue
            said = graph.text(question, self.trace)
            if len(question[1]) == self.wrong_hops:
                last = said[-2] - graph.person
                said[-2] = graph.person + (last + 1) % graph.people
            for place in range(min(len(said), texts.shape[1])):
                found[row, place, said[place]] = 50
        return found


def test_relations_are_permutations_and_an_answer_is_a_walk(made):
    graph = made.graph
    assert all(sorted(row) == list(range(graph.people)) for row in graph.edges.tolist())
    for start, relations in itertools.product(range(graph.people), itertools.product(range(graph.relations), repeat=3)):
        at = start
        for relation in relations:
            at = graph.edges[relation][at]
        assert graph.path((start, relations))[-1] == at
    assert np.array_equal(Graph(**tiny.KGQA).edges, graph.edges)
    assert not np.array_equal(Graph(**{**tiny.KGQA, "seed": 1}).edges, graph.edges)


def test_a_text_is_its_question_and_the_path_or_the_answer(made):
    graph = made.graph
    question = (2, (1, 0, 1))
    one, two, three = (made.words[graph.person + at] for at in graph.path(question))
    asked = f"{made.words[graph.person + 2]} friend boss friend ?"
    texts = [" ".join(made.words[word] for word in graph.text(question, trace)) for trace in (True, False)]
    assert texts == [f"{asked} friend {one} boss {two} friend {three} .", f"{asked} {three} ."]
    for trace in (True, False):
        assert graph.question(graph.text(question, trace)) == question
        assert graph.right(graph.text(question, trace)) == (True, trace)
    text = graph.text(question, True)
    assert graph.right(text[:-1]) == (False, False)  # without an end
    wrong = [*text[:6], graph.person + (text[6] - graph.person + 1) % graph.people, *text[7:]]
    assert graph.right(wrong) == (True, False)  # by a wrong way
    for none in ([0], [1, 0], [graph.person, 1, 0], [2, 2, 1, 0], [graph.person, graph.person, 1], []):
        assert graph.question(none) is None
        assert graph.right(none) == (False, False)


def test_every_edge_is_learned_from_and_no_question_of_the_test(made):
    texts = made.texts
    splits = [{texts.graph.question(text) for text in split.texts} for split in (texts.train, texts.val, texts.test)]
    assert len(texts.train) == len(splits[0])
    assert {(at, (way,)) for at in range(6) for way in range(2)} <= splits[0]
    assert not splits[2] & (splits[0] | splits[1])
    assert not splits[0] & splits[1]
    assert {len(question[1]) for question in splits[1] | splits[2] if question} == {2, 3}
    few = tiny.questions(made.store.root, labels=10, unlabelled=5).texts
    assert few.train.supervised is not None
    assert few.train.supervised.tolist() == [True] * 22 + [False] * 5
    assert few.learned != texts.learned


def test_the_loss_reads_the_answer_alone(made):
    batch = made.texts.train.batch(np.arange(len(made.texts.train)))
    for text, target in zip(batch.inputs.words.tolist(), batch.targets.words.tolist(), strict=True):
        question = made.graph.question(text[1:])
        given = len(question[1]) + 2
        assert target[:given] == [NONE] * given
        assert [word for word in target if word != NONE] == made.graph.text(question, True)[given:]
    assert made.counts()["test"].labels["next word"] == 10 * 5 + 10 * 7


def test_a_model_that_knows_the_graph_and_one_that_errs(made, tmp_path):
    loader = made.data(0).test_dataloader()
    every = {f"{name}_{hops}": 100.0 for name in ("exact", "trace") for hops in (1, 2, 3)}
    assert made.evaluate(Knows(made, True), loader, "test", CPU) == {**every, "pass_4": 100.0}
    assert made.evaluate(Knows(made, True, 2), loader, "test", CPU) == {
        **every,
        "exact_2": 0,
        "trace_2": 0,
        "pass_4": 100,
    }
    found = made.evaluate(Knows(made, True, 3), loader, "val", CPU)
    assert found == {"exact_2": 100, "trace_2": 100, "exact_3": 0, "trace_3": 0}
    direct = tiny.questions(tmp_path)
    found = direct.evaluate(Knows(direct, False), direct.data(0).test_dataloader(), "test", CPU)
    assert [found[f"exact_{hops}"] for hops in (1, 2, 3)] == [100] * 3
    assert [found[f"trace_{hops}"] for hops in (1, 2, 3)] == [0] * 3
    assert made.standard_error(50, 50) == pytest.approx(100 * (0.5 / 10) ** 0.5)


def test_pass_is_that_of_an_enumeration():
    right = torch.rand(6, 5, generator=rng.generator(0, "pass")) < 0.4
    right[0], right[1] = False, True
    for k in (1, 3, 5):
        ways = list(itertools.combinations(range(5), k))
        expected = [sum(bool(row[list(way)].any()) for way in ways) / len(ways) for row in right]
        torch.testing.assert_close(pass_at(right, k), torch.tensor(expected).double())
    assert pass_at(right[:0], 2).shape == (0,)
    with pytest.raises(KDBenchError, match="found k=6 of 5 answers, expected 1 to 5"):
        pass_at(right, 6)


def test_what_is_written_is_judged_and_read_back(made, model, tmp_path):
    ops = made.ops()
    found = ops["write"](model, 60, rng.generator(0, "corpus"), 1.0)
    asked = [made.graph.question(text) for text in found["texts"].tolist()]
    assert asked[0] == asked[len(made.texts.train)]  # from the first again
    assert None not in asked
    right = ops["judge"](found)
    assert right.tolist() == [made.graph.right(text)[0] for text in found["texts"].tolist()]
    texts = torch.tensor([[*made.graph.text(one, True), *[NONE] * 12][:12] for one in asked])
    assert ops["judge"]({"texts": texts}).all()
    save_file({**found, "texts": texts}, tmp_path / "corpus.safetensors")
    own: Any = tiny.questions(tmp_path, corpus=str(tmp_path)).texts
    assert np.array_equal(own.train.texts, texts.numpy())
    assert own.train.given.tolist() == found["given"].tolist()
    texts[0, 1] = NONE
    save_file({"texts": texts}, tmp_path / "corpus.safetensors")
    with pytest.raises(KDBenchError, match="found words -1 to"):
        tiny.questions(tmp_path, corpus=str(tmp_path)).texts  # noqa: B018


def test_the_graph_writes_the_path_of_the_questions_of_a_batch(made, tmp_path):
    direct = tiny.questions(tmp_path)
    batch = next(iter(direct.data(0).train_dataloader()))
    found = direct.ops()["trace"](batch)
    for text, asked in zip(found.inputs.words.tolist(), batch.inputs.words.tolist(), strict=True):
        question: Any = direct.graph.question(asked[1:])
        assert [*text[1:], 0][: len(direct.graph.text(question, True))] == direct.graph.text(question, True)
    assert torch.equal(found.ids, batch.ids)
    with pytest.raises(KDBenchError, match="begins with no question"):
        direct.ops()["trace"](direct.example())


def test_a_question_of_a_person(made, model):
    asked = made.parse("Ada boss friend")
    assert torch.equal(asked.inputs.words, made.parse("ada boss friend?").inputs.words)
    (found,) = made.predictions(Knows(made, True), asked)
    assert made.graph.right(
        [*asked.inputs.words[0, 1:].tolist(), *made.numbers(found["continuation"].split(), made.words), 0]
    )[1]
    batch = made.texts.test.batch(np.arange(3))
    made.picture(batch, {"student": model})
    titles, names = made.captions(batch, {"teacher": Knows(made, True)})
    for title, name, text in zip(titles, names["teacher"], made.texts.test.texts[:3], strict=True):
        assert name == f"teacher says «{made.joined([word for word in text if word > 0]).removeprefix(title + ' ')}»"
    with pytest.raises(KDBenchError, match=r"'adda' is no word of kgqa: did you mean .*'ada'"):
        made.parse("adda boss")


def test_more_questions_than_there_are_is_one_line(tmp_path: Path):
    with pytest.raises(KDBenchError, match="found 20 questions and 10 test questions of 2 hops, expected at most 24"):
        tiny.questions(tmp_path, kgqa={**tiny.KGQA, "questions": [20, 20]}).prepare()
