"""Which trainings a configuration asks for, and what tells two of them apart."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench import config
from kdbench.cache import Store
from kdbench.stages import Stages, make_task
from tests.cli import install


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    store = Store(tmp_path / "cache")

    def make(*overrides: str) -> Any:
        resolved = config.load(["task=toy", "preset=smoke", *overrides])
        return Stages(resolved, make_task(resolved, store), store, lambda *_: ([], []))

    return make


def test_a_teacher_with_data_of_its_own(stages):
    plain, own = stages("method=kd"), stages("method=kd", "teacher.data.fault=loss")
    assert plain.teacher_task is plain.task
    assert (own.teacher_task.options.fault, own.task.options.fault) == ("loss", None)
    assert own.teacher_recipe.config["data"]["fault"] == "loss"
    assert own.teacher_recipe.key != plain.teacher_recipe.key
    assert own.scratch_recipe.key == plain.scratch_recipe.key
    assert own.student_recipe().key != plain.student_recipe().key


def test_options_of_the_data_tell_products_apart_but_where_it_lies_does_not(stages):
    plain = stages()
    assert stages("data.root=/elsewhere").scratch_recipe.key == plain.scratch_recipe.key
    assert stages("data.fault=loss").scratch_recipe.key != plain.scratch_recipe.key
    assert stages("seed=1").teacher_recipe.key == plain.teacher_recipe.key
    assert stages("seed=1").scratch_recipe.key != plain.scratch_recipe.key
