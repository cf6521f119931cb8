"""``teacher.augment``: what the teacher's own training is under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.overrides import by_key, in_place
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.runs import summary
from kdbench.runs.trainings import Trainings
from tests.cli import CommandLine, install


@pytest.fixture
def stages(tmp_path, monkeypatch) -> Any:
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    store = Store(tmp_path / "cache")
    return lambda *words: Trainings(resolve(config.load(["task=toy", "preset=smoke", "method=kd", *words]), store))


def test_the_teacher_alone_is_trained_under_it_and_kept_apart(stages):
    plain, taught = stages(), stages("teacher.augment=toy_mixup")
    assert set(taught.teacher_recipe.plugins) == {"augment"}
    assert not taught.student_recipe().plugins.keys() - {"method"}
    assert taught.teacher_recipe.key != plain.teacher_recipe.key
    assert stages("teacher.augment=none").teacher_recipe.key == plain.teacher_recipe.key
    assert taught.scratch_recipe.key == plain.scratch_recipe.key
    assert taught.student_recipe().key != plain.student_recipe().key
    both = stages("teacher.augment=toy_mixup", "augment=toy_mixup")
    assert both.teacher_recipe.key == taught.teacher_recipe.key
    assert set(both.scratch_recipe.plugins) == {"augment"}


def test_its_options_are_those_of_the_option():
    own = config.load(["task=classification", "teacher.augment=mixup", "teacher.augment.alpha=0.4"])["teacher"]
    assert (own["augment"]["alpha"], own["augment"]["portion"]) == (0.4, 1.0)
    assert config.load(["task=classification"])["teacher"]["augment"] == {"name": "none"}


def test_words_as_hydra_writes_them_are_shown_as_a_user_would():
    given = ["method=kd", "teacher.augment=none,mixup", "teacher.augment.alpha=1", "teacher.augment={name: a}", "-m"]
    assert in_place(given) == ["method=kd", "augment@teacher.augment=none,mixup", *given[2:]]
    assert in_place(in_place(given)) == in_place(given)
    assert by_key(in_place(given)) == given


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["teacher.augment=toy_mixpu"], "augment=toy_mixpu: there is no such augment: did you mean 'toy_mixup'"),
        (["teacher.augment.alpha=1"], "it names no augmentation: teacher.augment=mixup, then its options"),
        (["teacher.augment=toy_mixup", "teacher.init_from=x"], "teacher.init_from gives one: leave one of them out"),
        (["teacher.augment=toy_hard"], "teacher.augment=toy_hard takes a trained teacher, which the training of the"),
        (["teacher.augment=mixup"], "Mixup requires mixable, which task toy lacks"),
    ],
)
def test_what_cannot_be_is_one_line(stages, words, line):
    with pytest.raises(KDBenchError, match=line):
        stages(*words)


def test_a_sweep_over_it(tmp_path, monkeypatch, capsys):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys)
    ran = kdbench("-m", "method=kd", "teacher.augment=none,toy_mixup", "trainer.epochs=1")
    assert ran.code == 0, ran.err
    records = {record.command.split("teacher.augment=")[1].split()[0]: record for record in kdbench.records()}
    assert set(records) == {"none", "toy_mixup"}
    assert records["toy_mixup"].flags == [*records["none"].flags, "teacher.augment:toy_mixup"]
    assert records["none"].spec_hash != records["toy_mixup"].spec_hash
    shown = {row.augment for row in summary.rows((Path("x"), record) for record in records.values())}
    assert shown == {"none", "none, teacher toy_mixup"}
    assert "teacher.augment=toy_mixup ·" in ran.out
    names = sorted(manifest["name"] for manifest in kdbench.manifests().values())
    assert names == ["scratch", "student", "student", "teacher", "teacher"]
