"""What a critic lets pass of what a teacher wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.methods.symbolic import Symbolic
from tasks.text.answers import QuestionAnswering
from tasks.text.task import Text
from tests.tasks.text import tiny
from tests.tasks.text.asked import trainings


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> QuestionAnswering:
    return tiny.questions(tmp_path_factory.mktemp("cache"), traces=True)


def written(task: QuestionAnswering, count: int = 120) -> dict[str, torch.Tensor]:
    """Texts of which half are right; the teacher is surer of these, on the whole."""
    g = rng.generator(0, "written", count)
    texts = torch.from_numpy(task.texts.train.texts)[torch.arange(count) % len(task.texts.train)].clone()
    right = torch.rand(count, generator=g) < 0.5
    for row in (~right).nonzero()[:, 0]:
        end = texts[row].tolist().index(0)
        texts[row, end - 1] = task.graph.person + (texts[row, end - 1] - task.graph.person + 1) % task.graph.people
    tokens = (texts >= 0).sum(1)
    log_probs = tokens * (torch.randn(count, generator=g) - 3 + 1.5 * right)
    return {"texts": texts, "tokens": tokens, "log_probs": log_probs}


def test_the_critic_keeps_more_right_ones_than_chance_and_fewer_texts_when_strict(made):
    corpus = written(made)
    right = made.ops()["judge"](corpus)
    shares, sizes = [], []
    for recall in (0.3, 0.8):
        kept: Any = Symbolic(recall, 60).chosen(corpus, made, 0)
        shares.append(right[kept].float().mean())
        sizes.append(int(kept.sum()))
    assert shares[0] > shares[1] > right.float().mean()
    assert sizes[0] < sizes[1] < 120
    # Of all texts checked the share of right ones that pass is the recall, a text more at most.
    kept = Symbolic(0.5, 1000).chosen(corpus, made, 0)
    assert int(kept[right].sum()) == -(-int(right.sum()) // 2)


def test_the_controls_have_its_size_kept_and_written(made):
    corpus = written(made)
    kept: Any = Symbolic(0.5, 60).chosen(corpus, made, 0)
    drawn: Any = Symbolic(0.5, 60, keep="random").chosen(corpus, made, 0)
    assert kept.sum() == drawn.sum()
    assert not torch.equal(kept, drawn)
    assert Symbolic(keep="all").chosen(corpus, made, 0) is None
    again: Any = Symbolic(0.5, 60).chosen(corpus, made, 0)
    other: Any = Symbolic(0.5, 60).chosen(corpus, made, 1)
    assert torch.equal(again, kept)
    assert not torch.equal(other, kept)


def test_other_texts_than_the_checked_ones_are_judged_by_nobody(made):
    corpus = written(made)

    class Counting:
        asked = 0

        def ops(self) -> Any:
            def judge(found: Any) -> Any:
                self.asked += len(found["texts"])
                return made.ops()["judge"](found)

            return {"judge": judge}

    task: Any = Counting()
    Symbolic(0.5, 60).chosen(corpus, task, 0)
    assert task.asked == 60


def test_texts_without_a_word_and_one_text(made):
    one = {name: value[:1] for name, value in written(made).items()}
    one["tokens"], one["log_probs"] = torch.zeros(1, dtype=torch.long), torch.zeros(1)
    kept: Any = Symbolic().chosen(one, made, 0)
    assert kept.tolist() == made.ops()["judge"](one).tolist()
    none: Any = Symbolic().chosen({name: value[:0] for name, value in one.items()}, made, 0)
    assert none.shape == (0,)


def test_a_student_learns_from_what_was_kept(tmp_path):
    # A teacher of one epoch is never right, so that a critic set by it would let nothing pass.
    run = trainings(tmp_path, "method=symbolic", "method.keep=all", "teacher.corpus.texts=30")
    assert run.make(run.student_recipe()).manifest["flags"] == ["corpus:30 of 30 written samples"]
    none = trainings(tmp_path, "method=symbolic", "method.checked=1", "teacher.corpus.texts=30")
    with pytest.raises(KDBenchError, match="method=symbolic keeps none of the 30 samples that were written"):
        none.make(none.student_recipe())


def test_it_asks_for_a_task_that_judges():
    side: dict[str, Any] = {"taps": {}}
    sides = {"name": "text", "student": side, "teacher": side}
    assert bind(Symbolic, QuestionAnswering, sides) == {}
    with pytest.raises(KDBenchError, match="Symbolic requires judges, which task text lacks"):
        bind(Symbolic, Text, sides)
    assert Symbolic.fidelity == "approximate"
