"""Which trainings a configuration asks for, and what tells two of them apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdbench.base import digest, rng
from kdbench.base.store import Store
from kdbench.base.weights import save_weights
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.records.record import find_records
from kdbench.runs.deployment import read_run
from kdbench.runs.trainings import Trainings
from tests.cli import CommandLine, install
from tests.compositions import Hard
from tests.plugins import Mutual
from tests.toy import Data, Net


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    store = Store(tmp_path / "cache")

    def make(*overrides: str) -> Any:
        resolved = config.load(["task=toy", "preset=smoke", *overrides])
        return Trainings(resolve(resolved, store))

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


# ---- trainings that plugins ask for ----------------------------------------------------------------------------------


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def names(made: Any) -> list[str]:
    return [recipe.name for recipe in made.recipes()]


def test_a_run_is_mostly_a_teacher_a_twin_and_a_student(stages):
    assert names(stages("method=kd")) == ["teacher", "scratch", "student"]
    assert names(stages("method=none")) == ["teacher", "scratch"]
    assert names(stages("method=none", "role=student")) == ["scratch"]
    assert names(stages("method=none", "role=teacher")) == ["teacher"]


def test_an_assistant_is_taught_and_teaches(stages, kdbench):
    made = stages("method=toy_assisted", "pair=sided")
    assert names(made) == ["teacher", "assistant", "scratch", "student"]
    teacher, assistant, _, student = made.recipes()
    assert assistant.inputs["teacher"].key == teacher.key
    assert student.inputs["teacher"].key == assistant.key
    assert student.pair["assistant"]["architecture"]["width"] == 6
    assert assistant.pair["assistant"]["architecture"]["width"] == 8
    ran = kdbench("method=toy_assisted", "pair=sided")
    assert ran.code == 0, ran.err
    assert "assistant: epoch 2/2" in ran.out
    assert len(kdbench.manifests()) == 4
    (record,) = kdbench.records()
    assert record.cost.teacher_passes == 1


def test_a_pair_without_an_assistant_is_one_line(kdbench):
    line = kdbench("method=toy_assisted").error
    assert line == "Assisted needs a 'assistant' beside teacher and student, which pair toy does not name"


def test_a_teacher_may_be_trained_under_the_plugin(stages, kdbench):
    made, plain = stages("method=toy_labelled_teacher"), stages("method=kd")
    assert set(made.teacher_recipe.plugins) == {"method"}
    assert not made.scratch_recipe.plugins
    assert made.teacher_recipe.key != plain.teacher_recipe.key
    assert made.scratch_recipe.key == plain.scratch_recipe.key
    for method in ("kd", "toy_labelled_teacher"):
        ran = kdbench(f"method={method}", "seed=1")
        assert ran.code == 0, ran.err
    plain_record, record = sorted(kdbench.records(), key=lambda r: r.method)
    assert record.scores["scratch"] == plain_record.scores["scratch"]
    assert record.cost.teacher_passes == 1
    teachers = [set(m["terms"]) for m in kdbench.manifests().values() if m["name"] == "teacher"]
    assert sorted(teachers, key=len) == [{"task"}, {"task", "kd"}]


def test_several_teachers(stages, kdbench, tmp_path):
    made = stages("method=toy_two_teachers", "pair=sided")
    assert names(made) == ["teacher", "scratch", "second", "student"]
    assert set(made.student_recipe().inputs) == {"teacher", "second"}
    files = []
    for name, width in (("teacher", 8), ("second", 10)):
        files.append(tmp_path / f"{name}.safetensors")
        save_weights(Net(width), files[-1])
    ran = kdbench(
        "method=toy_two_teachers",
        "pair=sided",
        f"teacher.init_from={files[0]}",
        f"++pair.second.init_from={files[1]}",
    )
    assert ran.code == 0, ran.err
    assert "second: epoch" not in ran.out
    (record,) = kdbench.records()
    assert record.cost.teacher_passes == 2


def test_an_ensemble_is_the_mean_of_its_members(kdbench, tmp_path):
    files, members = [], []
    for seed in range(2):
        with rng.scope(seed, "member"):
            members.append(Net(8).eval())
        files.append(tmp_path / f"{seed}.safetensors")
        save_weights(members[-1], files[-1])
    ran = kdbench("method=kd", f"teacher.init_from=[{files[0]},{files[1]}]")
    assert ran.code == 0, ran.err
    (record,) = kdbench.records()
    with torch.no_grad():
        right = [
            torch.stack([member(batch.inputs) for member in members]).mean(0).argmax(1) == batch.targets
            for batch in Data(0).test_dataloader()
        ]
    assert record.models["teacher"].params == 2 * sum(p.numel() for p in members[0].parameters())
    assert record.scores["teacher"].test["accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
    hint = kdbench("method=fitnet", f"teacher.init_from=[{files[0]},{files[1]}]")
    assert "'body' of the teacher is Grid, but describe() gives nothing" in hint.error


def test_stored_answers_may_be_the_teacher(kdbench, tmp_path):
    table = tmp_path / "answers.safetensors"
    save_file({"ids": torch.arange(64), "outputs": torch.randn(64, 5)}, table)
    ran = kdbench("method=kd", f"teacher.answers={table}")
    assert ran.code == 0, ran.err
    (record,) = kdbench.records()
    assert "teacher" not in record.scores
    assert record.gap_reason == "the teacher is a table of stored answers"
    assert record.cost.teacher_passes == 0
    assert record.terms["kd"].last > 0
    save_file({"ids": torch.arange(30), "outputs": torch.randn(30, 5)}, table)
    assert "the table of stored outputs has no sample" in kdbench("method=kd", f"teacher.answers={table}").err
    save_file({"outputs": torch.randn(30, 5)}, table)
    assert "has no 'ids': expected stored answers" in kdbench("method=kd", f"teacher.answers={table}").error
    assert kdbench("method=kd", "teacher.answers=nowhere").error == "teacher.answers=nowhere: there is no such file"


def test_a_student_is_chosen_before_it_is_trained(kdbench):
    ran = kdbench("method=toy_chosen")
    assert ran.code == 0, ran.err
    (record,) = kdbench.records()
    chosen = sum(p.numel() for p in Net(6).parameters())
    assert record.models["student"].params == chosen
    widths = {m["name"]: m["params"] for m in kdbench.manifests().values()}
    assert widths["scratch"] == widths["student"] == chosen
    assert widths["supernet"] == sum(p.numel() for p in Net(8).parameters())
    (run,) = find_records(kdbench.results)
    assert sum(p.numel() for p in read_run(run).artifact().module.parameters()) == chosen
    assert "This run has its record" in kdbench("method=toy_chosen").out


def test_a_run_without_a_twin_says_why(kdbench):
    ran = kdbench("method=toy_label_free")
    assert ran.code == 0, ran.err
    (record,) = kdbench.records()
    assert "scratch" not in record.scores
    assert record.gap_reason == "the student has no labels of its own"
    assert len(kdbench.manifests()) == 2


def test_what_stays_in_the_twin_is_said_by_the_plugin_and_not_by_its_axis(stages, monkeypatch):
    chosen = "method=none", "augment=toy_hard"
    assert not stages(*chosen).scratch_recipe.plugins
    monkeypatch.setattr(Hard, "twin", "own_float")
    twin = stages(*chosen).scratch_recipe
    assert set(twin.plugins) == {"augment"}
    assert twin.inputs["teacher"].key == stages("method=none").scratch_recipe.key
    assert not stages("method=toy_mutual").scratch_recipe.plugins
    monkeypatch.setattr(Mutual, "twin", "untaught")
    assert set(stages("method=toy_mutual").scratch_recipe.plugins) == {"method"}


def test_a_quantisation_that_is_taught_stays_in_the_twin(stages, kdbench):
    made = stages("method=kd", "quant=toy_taught")
    assert set(made.scratch_recipe.plugins) == {"quant"}
    float_twin, float_student = made.scratch_recipe.inputs["float"], made.student_recipe().inputs["float"]
    assert float_twin.key == stages("method=kd").scratch_recipe.key
    assert float_student.key == stages("method=kd").student_recipe().key
    assert set(made.student_recipe().inputs) == {"float", "teacher"}
    ran = kdbench("method=kd", "quant=toy_taught")
    assert ran.code == 0, ran.err
    assert len(kdbench.manifests()) == 5


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_all_trainings_are_rehearsed_before_one_trains(kdbench):
    """The teacher's own optimizer is wrong, and the student's tap; neither waits for a training."""
    for override in ("teacher.trainer={optimizer: {_target_: torch.optim.SGD, lr: -1}}", "pair.student.taps.body=bdy"):
        ran = kdbench("method=fitnet", override)
        assert ran.error
        assert "epoch" not in ran.out
        assert not kdbench.manifests()
