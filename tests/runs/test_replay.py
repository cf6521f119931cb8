"""``teacher.replay``: which products it makes, who shares them, and who cannot do with them."""

from __future__ import annotations

import json

import pytest

from kdbench.records.record import find_records
from kdbench.runs.deployment import read_run
from tests.cli import CommandLine
from tests.runs.test_trainings import stages  # noqa: F401 - a fixture


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def answers(kdbench: CommandLine) -> dict[str, str]:
    """When each product of answers was made."""
    found = [json.loads(path.read_text()) for path in kdbench.cache.glob("answers/*/manifest.json")]
    return {manifest["key"]: manifest["created"] for manifest in found}


def test_answers_are_made_once_for_seeds_methods_and_trials(kdbench):
    ran = kdbench("method=kd", "teacher.replay=2", "tuning.trials=2")
    assert ran.code == 0, ran.err
    logits = answers(kdbench)
    assert len(logits) == 1
    for overrides in (["method=kd", "seed=1"], ["method=dkd"], ["method=fitnet"]):
        ran = kdbench(*overrides, "teacher.replay=2")
        assert ran.code == 0, ran.err
    made = answers(kdbench)
    assert len(made) == 2  # what fitnet reads beside the logits
    assert logits.items() <= made.items()
    records = kdbench.records()
    assert [record.cost.teacher_passes for record in records] == [0] * 4
    assert all("replay:2" in record.flags for record in records)
    sides = [m["name"] for m in kdbench.manifests().values()]
    assert sides.count("teacher") == 1
    assert sides.count("scratch") == 2
    for run in find_records(kdbench.results):
        assert read_run(run).artifact().module is not None
    assert "This run has its record" in kdbench("method=kd", "teacher.replay=2", "tuning.trials=2").out


def test_the_twin_sees_the_same_pool(stages):  # noqa: F811
    plain, pooled, more = stages("method=kd"), stages("method=kd", "teacher.replay=2"), stages("teacher.replay=3")
    assert pooled.teacher_recipe.key == plain.teacher_recipe.key
    assert [t.scratch_recipe.views for t in (plain, pooled, more)] == [None, 2, 3]
    assert len({t.scratch_recipe.key for t in (plain, pooled, more)}) == 3
    assert pooled.student_recipe().trial(0.3, 1000, 0.4).views == 2


def test_one_view_where_nothing_is_drawn(stages, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tests.cli.CliToy.augmented", lambda self: False)
    plain, pooled = stages("method=kd"), stages("method=kd", "teacher.replay=8")
    assert pooled.scratch_recipe.key == plain.scratch_recipe.key
    assert pooled.student_recipe().inputs["teacher"].views == 1


def test_answers_are_made_in_the_precision_of_the_student(stages):  # noqa: F811
    plain = stages("method=kd", "teacher.replay=2").student_recipe().inputs["teacher"]
    own = stages("method=kd", "teacher.replay=2", "student.trainer.precision=bf16-mixed").student_recipe()
    assert own.inputs["teacher"].config["trainer"]["precision"] == "bf16-mixed"
    assert own.inputs["teacher"].key != plain.key
    longer = stages("method=kd", "teacher.replay=2", "student.trainer.epochs=7").student_recipe()
    assert longer.inputs["teacher"].key == plain.key


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method=toy_reuse", "method=toy_reuse cannot replay a teacher: it calls the classifier of the teacher"),
        ("augment=toy_hard", "augment=toy_hard cannot replay a teacher: it takes gradients through the teacher"),
        ("augment=toy_mixup", "augment=toy_mixup cannot replay a teacher: it changes what is read, and answers are"),
        ("teacher.replay=0", "teacher.replay=0"),
        ("teacher.replay_limit=1e-9", "teacher.replay=2: the answers take 0.00 GB, 0.00 of them logits, expected"),
    ],
)
def test_who_cannot_says_so_before_anything_trains(kdbench, override, line):
    ran = kdbench("method=kd", "teacher.replay=2", override)
    assert ran.error.startswith(line)
    assert not kdbench.manifests()


def test_the_matrix_knows(kdbench, capsys):
    from kdbench import matrix

    cells = {cell.name: cell for cell in matrix.compute() if (cell.task, cell.axis) == ("toy", "method")}
    assert cells["kd"].no_replay == ""
    assert cells["srrl"].no_replay == "it calls the classifier of the teacher"
    assert cells["toy_privileged"].no_replay.startswith("it changes what is read")
    assert cells["dml"].no_replay == ""  # its peer trains along
    assert cells["none"].no_replay == ""
