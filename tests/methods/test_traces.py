"""Students that learn from traces, of the teacher or of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.methods.traces import GraphTraces, Traces
from tasks.text.answers import QuestionAnswering
from tasks.text.task import Text
from tests.tasks.text import tiny
from tests.tasks.text.asked import trainings


def test_all_traces_or_the_right_ones(tmp_path):
    task = tiny.questions(tmp_path, traces=True)
    texts = torch.from_numpy(task.texts.train.texts[:20]).clone()
    texts[:5, 4] = 1  # an answer that is nobody
    corpus = {"texts": texts, "tokens": torch.ones(20, dtype=torch.long)}
    assert Traces().chosen(corpus, task, 0) is None
    kept: Any = Traces(checked=True).chosen(corpus, task, 0)
    assert torch.equal(kept, task.ops()["judge"](corpus))
    assert not kept[:5].any()
    assert kept[5:].all()


def test_they_ask_for_a_task_of_traces():
    side: dict[str, Any] = {"taps": {}}
    sides = {"name": "text", "student": side, "teacher": side}
    for method in (Traces, GraphTraces):
        assert bind(method, QuestionAnswering, sides) == {}
        with pytest.raises(KDBenchError, match=f"{method.__name__} requires .*traces"):
            bind(method, Text, sides)
        assert method.fidelity == "approximate"


def test_the_teacher_reads_traces_and_writes_them_for_a_student_of_answers(tmp_path):
    run = trainings(tmp_path, "method=traces", "teacher.corpus.texts=30")
    assert run.config["teacher"]["data"]["traces"] is True
    assert run.config["data"]["traces"] is False
    product = run.make(run.student_recipe())
    assert product.manifest["flags"] == ["corpus:30 of 30 written samples"]
    assert product.manifest["cost"]["teacher_passes"] == 0


def test_the_graph_writes_for_the_student_alone(tmp_path):
    run = trainings(tmp_path, "method=graph_traces")
    recipe = run.student_recipe()
    manifest = run.make(recipe).manifest
    assert "teacher_tokens" not in manifest["cost"]
    assert manifest["cost"]["samples_seen"] == 32  # two whole batches of 44
    method, task = GraphTraces(), run.task
    ops = task.ops()

    class Cast:
        cast = type("cast", (), {"task": task})

    probe: Any = Cast()
    method.build(probe)
    batch = task.texts.train.batch(np.arange(6))  # type: ignore[attr-defined]
    context: Any = None
    read = method.views({"student": {"main": batch, "meta": batch}, "teacher": {"main": batch}}, context)
    assert read["teacher"]["main"] is batch
    assert read["student"]["meta"] is batch
    own = read["student"]["main"]
    assert torch.equal(own.inputs.words, ops["trace"](batch).inputs.words)
    assert torch.equal(own.ids, batch.ids)
    assert (own.targets.words >= 0).sum() > (batch.targets.words >= 0).sum()
