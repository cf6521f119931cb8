"""Which trainings a configuration asks for, and what tells two of them apart."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench import config, digest
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


def test_a_limit_of_time_tells_products_apart_but_the_noise_of_the_scores_does_not(stages):
    plain = stages("method=kd")
    for override, same in (("trainer.max_minutes=1", False), ("task.noise=2", True), ("trainer.threads=2", True)):
        other = stages("method=kd", override)
        for recipe in ("teacher_recipe", "scratch_recipe", "main_recipe"):
            assert (getattr(other, recipe).key == getattr(plain, recipe).key) == same, (override, recipe)


@pytest.mark.parametrize("key", ["trainer.optimizer", "trainer.scheduler", "method.optimizer"])
def test_the_source_of_an_optimizer_or_a_schedule_tells_products_apart(stages, tmp_path, monkeypatch, key):
    name = f"own_{key.replace('.', '_')}"
    source = tmp_path / f"{name}.py"
    source.write_text("from torch.optim import SGD as Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = stages("method=kd", f"{key}._target_={name}.Mine")
    before = made.main_recipe.key
    source.write_text("from torch.optim import Adam as Mine\n")
    digest._source_digest.cache_clear()
    assert made.main_recipe.key != before


def test_the_sources_of_torch_are_not_read_for_a_key(stages):
    """They are more than a thousand files: many seconds, and a key that would change with every release."""
    assert not any(name.split(".")[0] == "torch" for name in stages("method=kd").main_recipe.modules)


def test_options_of_the_data_tell_products_apart_but_where_it_lies_does_not(stages):
    plain = stages()
    assert stages("data.root=/elsewhere").scratch_recipe.key == plain.scratch_recipe.key
    assert stages("data.fault=loss").scratch_recipe.key != plain.scratch_recipe.key
    assert stages("seed=1").teacher_recipe.key == plain.teacher_recipe.key
    assert stages("seed=1").scratch_recipe.key != plain.scratch_recipe.key
