"""The supervised loss on what the teacher wrote, through the trainings of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.compat import bind
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.methods.seqkd import SeqKD
from kdbench.runs import stored
from kdbench.runs.trainings import Trainings
from kdbench.training.recipe import CORPUS, WRITTEN, Written
from tasks.text.task import Text
from tests.tiny import overrides
from tests.toy import Toy


def trainings(folder: Path, *more: str) -> Trainings:
    settings = ["task=text", "preset=smoke", "trainer.epochs=1", "teacher.trainer.epochs=1", "trainer.accelerator=cpu"]
    chosen = [*settings, *overrides("text", folder), *more]
    return Trainings(resolve(config.load(chosen), Store(folder / "cache")))


def test_it_asks_for_a_task_that_writes():
    pair: dict[str, Any] = {"name": "text", "student": {"taps": {}}, "teacher": {"taps": {}}}
    assert bind(SeqKD, Text, pair) == {}
    with pytest.raises(KDBenchError, match="SeqKD requires writes, which task toy lacks"):
        bind(SeqKD, Toy, pair)


def test_the_student_learns_what_the_teacher_wrote(tmp_path):
    run = trainings(tmp_path, "method=seqkd", "teacher.corpus.texts=32", "teacher.corpus.seed=3")
    recipe = run.student_recipe()
    written = recipe.inputs[CORPUS]
    assert isinstance(written, Written)
    assert written.source.key == run.teacher_recipe.key
    product = run.make(recipe)
    cost = product.manifest["cost"]
    assert cost["teacher_tokens"] == 32 * 12
    assert cost["teacher_passes"] == 0
    assert cost["samples_seen"] == 32
    assert "student_tokens" not in cost
    assert product.manifest["flags"] == ["corpus:32 of 32 written samples"]
    folder = stored.corpus(run.store, run.task, written, lambda recipe: pytest.fail("written again"), recipe)
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts["options"] == {"texts": 32, "temperature": 1.0, "seed": 3, "beside": False}
    assert facts["writer"] == run.teacher_recipe.key
    # The next run may read it as data.
    texts = load_file(folder / WRITTEN)["texts"]
    alone = trainings(tmp_path, "method=none", f"data.corpus={folder}")
    own: Any = alone.task
    assert torch.equal(torch.from_numpy(own.texts.train.texts), texts)
    assert alone.task.dataset().notes[0].startswith("corpus:32 texts by ")
    assert alone.config["teacher"]["data"]["corpus"] is None


def test_the_twin_reads_the_data_set_and_what_is_written_tells_students_apart(tmp_path):
    plain = trainings(tmp_path, "method=kd")
    keys = {plain.student_recipe().key}
    for more in ("texts=32", "texts=48", "seed=1", "temperature=null", "beside=true"):
        texts = [] if more.startswith("texts") else ["teacher.corpus.texts=32"]
        run = trainings(tmp_path, "method=kd", f"teacher.corpus.{more}", *texts)
        assert run.scratch_recipe.key == plain.scratch_recipe.key
        assert CORPUS not in run.scratch_recipe.inputs
        keys.add(run.student_recipe().key)
    assert len(keys) == 6


def test_beside_what_is_there(tmp_path):
    run = trainings(tmp_path, "method=kd", "teacher.corpus={texts: 8, beside: true, temperature: null}")
    cost = run.make(run.student_recipe()).manifest["cost"]
    assert cost["samples_seen"] == 32  # 24 with labels, and those
    assert cost["teacher_passes"] == 1


class Half(SeqKD):
    """Keeps what the teacher finds most probable."""

    def chosen(self, corpus, task, seed):
        return corpus["log_probs"] > corpus["log_probs"].median()


class Nothing(SeqKD):
    def chosen(self, corpus, task, seed):
        return torch.zeros(len(corpus["tokens"]), dtype=torch.bool)


def test_a_method_may_choose_from_it(tmp_path):
    run = trainings(tmp_path, "method=seqkd", f"method._target_={__name__}.Half", "teacher.corpus.texts=32")
    manifest = run.make(run.student_recipe()).manifest
    assert manifest["flags"] == ["corpus:16 of 32 written samples"]
    assert manifest["cost"]["teacher_tokens"] == 32 * 12
    none = trainings(tmp_path, "method=seqkd", f"method._target_={__name__}.Nothing", "teacher.corpus.texts=32")
    with pytest.raises(KDBenchError, match="method=seqkd keeps none of the 32 samples that were written"):
        none.make(none.student_recipe())


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["method=none", "teacher.corpus.texts=8"], "teacher.corpus goes with a method; data.corpus=DIR"),
        (["method=kd", "teacher.corpus.texts=8", "teacher.replay=1"], "leave out teacher.replay"),
        (["method=kd", "teacher.corpus.seed=1"], "teacher.corpus.texts"),
        (["method=kd", "teacher.corpus={texts: 8, temperture: 1}"], "teacher.corpus.temperture: unknown key"),
    ],
)
def test_bad_options_are_one_line(tmp_path, more, line):
    with pytest.raises(KDBenchError, match=line):
        trainings(tmp_path, *more).student_recipe()


def test_a_classifier_writes_nothing(tmp_path):
    chosen = config.load(["task=text", "data=topics", "preset=smoke", "method=kd", "teacher.corpus.texts=8"])
    run = Trainings(resolve(chosen, Store(tmp_path / "cache")))
    with pytest.raises(KDBenchError, match="teacher.corpus: a network of task text on these data writes none"):
        run.student_recipe()


def test_without_a_corpus_there_is_nothing_to_learn(tmp_path, monkeypatch):
    run = trainings(tmp_path, "method=seqkd")
    monkeypatch.setitem(run.config["teacher"], "corpus", {})
    with pytest.raises(KDBenchError, match="seqkd learns from what the teacher writes: teacher.corpus.texts=N"):
        run.student_recipe()
