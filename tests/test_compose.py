"""Runs that compose several plugins: a method with an augmentation, with a quantisation, or with both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.needs import Stage
from kdbench.plugin import Plugin
from kdbench.records.record import find_records
from kdbench.runs.trainings import Trainings
from kdbench.training.fit import Training
from kdbench.training.plan import StepPlan, make_plan, merge_roles, merge_stages
from kdbench.training.recipe import DEPLOYED, MODEL
from tests import compositions, plugins
from tests.cli import CommandLine, install
from tests.compositions import Alone, Greedy, Hard, Late, Marks, Quantised
from tests.plugins import KD, Hint, Mutual, Staged
from tests.toy import Net, Toy, recipe, teacher_file
from tests.toy import specs as toy_specs

TERMS = {"Hard": ("hard", "easy"), "Greedy": ("hard", "easy"), "Marks": ("marks",), "Quantised": ("range",)}
PARAMETERS = ("student.head.weight", "augment.shift", "method.project.weight")


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))

    def make(*overrides: str) -> Trainings:
        resolved = config.load(["task=toy", "preset=smoke", *overrides])
        store = Store(tmp_path / "cache")
        return Trainings(resolve(resolved, store))

    return make


def plan_of(augment: Plugin, method: Plugin, *terms: str, parameters=PARAMETERS, stage=Stage()) -> StepPlan:
    own = TERMS[type(augment).__name__]
    weights = {"augment": dict.fromkeys(own, 1.0), "method": dict.fromkeys(terms, 1.0)}
    found = {"task": ("task", "task.peer"), "augment": own, "method": terms}
    return make_plan({"augment": augment, "method": method}, found, weights, parameters, stage)


def training(folder, task=None, **specs: dict[str, Any]) -> Training:
    return Training(replace(recipe("KD"), plugins=toy_specs(**specs)), task or Toy(), {"teacher": teacher_file(folder)})


def spec(name: str, **weights: float) -> dict[str, Any]:
    module = compositions if hasattr(compositions, name) else plugins
    return {"_target_": f"{module.__name__}.{name}", "weights": weights or plugins.WEIGHTS.get(name, {})}


# ---- roles and updates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("augment", "method"), ("method", "augment")])
def test_a_fixed_teacher_keeps_its_graph_if_one_of_two_asks_for_it(order):
    both = {"augment": Hard(), "method": KD()}
    assert merge_roles({owner: both[owner].roles for owner in order})["teacher"].grad == "input"


@pytest.mark.parametrize("augment", [Hard(), Greedy()])
def test_everything_is_trained_once_beside_a_learned_augmentation(augment):
    updates = [(dict(u.terms or {}), u.params or ()) for u in plan_of(augment, Hint(), "hint").updates]
    student, shift, project = PARAMETERS
    for term, of_student in (("task", 1), ("hint", 1), ("easy", 1), ("hard", 0)):
        assert sum(terms.get(term, 0) for terms, params in updates if student in params) == of_student
    assert [terms for terms, params in updates if shift in params] == [{"hard": -1.0}]
    assert any("hint" in terms for terms, params in updates if project in params)


def test_the_groups_of_two_plugins_are_their_own():
    plan = plan_of(Hard(), Mutual(), "mutual", "mutual.peer", parameters=(*PARAMETERS[:2], "peer.head.weight"))
    assert [u.group for u in plan.updates] == [0, 1, 2, 3]


def test_a_learned_augmentation_runs_with_and_without_a_method(kdbench):
    for method in ("none", "kd"):
        ran = kdbench("augment=toy_hard", f"method={method}")
        assert ran.code == 0, ran.err
    alone, distilled = sorted(kdbench.records(), key=lambda record: record.method != "none")
    assert alone.augment == distilled.augment == "toy_hard"
    # The twin has no teacher, so it is trained without the augmentation, which is what the run is then about.
    assert alone.scores["scratch"] == distilled.scores["scratch"]
    assert "student, toy_hard" in kdbench("augment=toy_hard", "method=none").out


def test_a_scratch_twin_keeps_what_needs_no_teacher(stages):
    kept = stages("method=kd", "augment=toy_mixup", "quant=toy_rounded").scratch_recipe.plugins
    assert set(kept) == {"augment", "quant"}
    hard = stages("method=toy_mutual", "augment=toy_hard")
    assert not hard.scratch_recipe.plugins
    assert hard.distils
    assert not stages("method=none", "augment=toy_mixup").distils


# ---- stages ----------------------------------------------------------------------------------------------------------


def test_the_stages_of_a_method_go_where_a_quantisation_has_the_default_one():
    names = [(s.name, s.owner) for s in merge_stages({"quant": Quantised(), "method": Staged()})]
    assert names == [("first", "method"), ("second", "method"), ("rounded", "quant")]
    assert [s.name for s in merge_stages({"quant": Quantised(), "method": KD()})] == ["distil", "rounded"]
    with pytest.raises(KDBenchError, match="quant and method each bring their own stages"):
        merge_stages({"quant": Late(), "method": Staged()})


def test_a_stage_leaves_the_terms_and_parameters_of_other_plugins_alone():
    stage = Stage("distil", terms=("kd",), trains=("student",), owner="method")
    plan = plan_of(Marks(), KD(), "kd", stage=stage, parameters=PARAMETERS[:2])
    assert plan.updates[0].terms == {"kd": 1.0, "marks": 1.0}
    assert plan.updates[0].params == PARAMETERS[:2]


def test_a_stage_of_one_plugin_alone_has_no_terms_parameters_or_updates_of_others():
    stage = Stage("points", terms=("kd",), trains=("student.*",), alone=True, owner="method")
    plan = plan_of(Hard(), KD(), "kd", stage=stage, parameters=("student.head.weight", "augment.shift"))
    assert [(u.terms, u.params) for u in plan.updates] == [({"kd": 1.0}, ("student.head.weight",))]


@pytest.mark.parametrize("others", [{"method": Staged()}, {"method": KD()}, {"augment": Marks(), "method": Staged()}])
def test_stages_of_one_plugin_alone_take_the_place_of_all(others):
    for both in ({"quant": Alone(), **others}, {**others, "quant": Alone()}):
        assert [(s.name, s.owner) for s in merge_stages(both)] == [("points", "quant")]


def test_in_a_stage_of_one_plugin_alone_the_banks_of_others_rest(tmp_path):
    made = training(tmp_path, quant=spec("Alone", idle=1.0), method=spec("Bank"))
    made.run(tmp_path)
    bank: Any = made.plugins["method"]
    assert not bank.bank.any()


def test_a_stage_without_epochs_is_entered_and_trains_nothing(tmp_path):
    made = training(tmp_path, quant=spec("Halved"), method=spec("KD"))
    before = {name: p.clone() for name, p in made.cast.model("student").named_parameters()}
    manifest = made.run(tmp_path)
    assert manifest["cost"]["epochs"] == manifest["cost"]["samples_seen"] == 0
    assert manifest["terms"] == {}
    assert manifest["scores"]["val"].keys() == {"accuracy"}
    weights = load_file(tmp_path / MODEL)
    assert torch.equal(weights["head.weight"], before["head.weight"] / 2)
    assert torch.equal(weights["stem.0.weight"], before["stem.0.weight"])


def test_a_method_distils_before_and_while_the_student_is_quantised(tmp_path):
    manifest = training(tmp_path, quant=spec("Quantised", range=1.0), method=spec("KD")).run(tmp_path)
    assert manifest["cost"]["epochs"] == 3
    assert manifest["cost"]["teacher_passes"] == 1.0
    assert load_file(tmp_path / MODEL).keys() == Net(4).state_dict().keys()


def test_a_later_stage_is_rehearsed_before_anything_trains(kdbench):
    ran = kdbench("method=toy_shell", "method._target_=tests.compositions.Late")
    assert ran.error.endswith("reaches no trainable parameter (('studnt',))")
    assert "epoch" not in ran.out


# ---- what one plugin does to another ---------------------------------------------------------------------------------


def test_the_tuned_factor_is_on_the_weights_of_the_method_alone(stages):
    made = stages("method=kd", "quant=toy_rounded")
    weights: list[Any] = [
        Training(made.student_recipe(factor), made.task, untrained=True).distiller().weights for factor in (1.0, 3.0)
    ]
    assert weights[0]["quant"] == weights[1]["quant"]
    assert weights[1]["method"]["kd"] == 3 * weights[0]["method"]["kd"]
    assert stages("augment=toy_hard", "method=none").student_recipe().tuned == "augment"


@pytest.mark.parametrize("method", ["toy_labelled", "crd"])
def test_what_an_augmentation_takes_from_the_batches_is_missed(kdbench, method):
    """Mixed samples have neither one class nor one place in a memory bank."""
    line = kdbench("augment=toy_mixup", f"method={method}").error
    assert "which augment= takes from the batches: leave one of them out" in line
    assert not kdbench.results.exists()


def test_mixed_samples_are_distilled(kdbench):
    assert kdbench("augment=toy_mixup", "method=kd").code == 0
    (record,) = kdbench.records()
    assert record.cost.teacher_passes == 1


def test_a_replaced_student_is_the_one_in_the_checkpoint(tmp_path):
    made = training(tmp_path, quant=spec("Replacing"), method=spec("KD"))
    made.run(tmp_path)
    saved = torch.load(tmp_path / "scratch" / "distil" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in made.cast.model("student").state_dict().items():
        assert torch.equal(saved[f"roles.student.{name}"], value)


def test_weights_are_plain_beside_what_is_deployed(tmp_path):
    """Both plugins keep something at inference, the method within the quantisation."""
    training(tmp_path, quant=spec("Packed", range=1.0), method=spec("Shell", kd=1.0)).run(tmp_path)
    assert load_file(tmp_path / MODEL).keys() == Net(4).state_dict().keys()
    deployed = load_file(tmp_path / DEPLOYED)
    assert {"scale", "model.scale", "model.model.head.weight"} <= deployed.keys()


@pytest.mark.parametrize("method", ["none", "toy_shell"])
def test_a_twin_that_keeps_more_than_its_weights_is_measured(kdbench, method):
    ran = kdbench("quant=toy_packed", f"method={method}")
    assert ran.code == 0, ran.err
    (run,) = find_records(kdbench.results)
    assert (run / "student.safetensors").is_file()
