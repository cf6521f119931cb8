from __future__ import annotations

import pytest

from kdbench.errors import KDBenchError
from kdbench.needs import Role, Stage, State, Update
from kdbench.plugin import Method, Plugin
from kdbench.training.plan import Schedule, covers, make_plan, merge_roles, merge_stages
from tests.plugins import KD, Faulty, MeanTeacher, Mutual, Rounded


class Swift(MeanTeacher):
    roles = {**MeanTeacher.roles, "ema": Role("ema", init="student", grad="none", decay=0.5)}


PARAMETERS = ("student.stem", "student.head.weight", "method.project.weight")


def state(step: int) -> State:
    return State(0, step, 0.0)


def plan_of(plugin: Plugin, terms: tuple[str, ...] = ("kd",), weights=None, stage=Stage(), parameters=PARAMETERS):
    found = {"task": ("task",), "method": terms}
    weights = {"method": dict.fromkeys(terms, 1.0)} if weights is None else weights
    return make_plan({"method": plugin}, found, weights, parameters, stage)


def test_one_default_update_covers_everything():
    plan = plan_of(KD(), weights={"method": {"kd": 0.5}})
    assert plan.single
    assert plan.updates[0].terms == {"task": 1.0, "kd": 1.0}
    assert plan.updates[0].params == PARAMETERS
    assert plan.weights(0, 0.0) == {"task": 1.0, "kd": 0.5}


def test_a_run_without_plugins_trains_on_the_task_alone():
    plan = make_plan({}, {"task": ("task",)}, {}, ("student.w",), Stage())
    assert plan.single
    assert plan.updates[0].terms == {"task": 1.0}


def test_a_weight_may_ramp_and_may_be_that_of_the_task():
    plan = plan_of(KD(), weights={"method": {"kd": {"value": 2.0, "ramp": 0.5}, "task": 0.0}})
    assert plan.weights(0, 0.0) == {}
    assert plan.weights(0, 0.25) == {"kd": 1.0}
    assert plan.weights(0, 0.9) == {"kd": 2.0}
    assert Schedule.of("kd", 3).at(0.0) == 3.0
    with pytest.raises(KDBenchError, match=r"weight of term 'kd' is .* expected a number or \{value, ramp\}"):
        Schedule.of("kd", {"valeu": 1.0})


def test_groups_follow_periods_and_conditions():
    class Two(Method):
        def updates(self):
            return (
                Update({"kd": 1.0}, group=1, every=2),
                Update({"hint": -1.0}, group=0, when=lambda s: s.step == 3),
                Update({"task": 1.0}, group=1),
            )

    plan = plan_of(Two(), ("kd", "hint"))
    assert not plan.single
    assert [plan.groups(state(i)) for i in range(4)] == [[[0, 2]], [[2]], [[0, 2]], [[1], [2]]]
    assert plan.weights(1, 0.0) == {"hint": -1.0}
    # Ten steps: group 1 steps every time, and group 0 may.
    assert plan.steps({0}, 10) == 5
    assert plan.steps({0, 2}, 10) == 10
    assert plan.steps({0, 1, 2}, 10) == 20
    assert plan.steps({0}, 9) == 5


def test_two_plugins_with_the_default_update_make_one():
    names = {"task": ("task",), "method": ("kd",), "quant": ("reg",)}
    weights = {"method": {"kd": 1.0}, "quant": {"reg": 0.1}}
    plan = make_plan({"quant": Plugin(), "method": KD()}, names, weights, PARAMETERS, Stage())
    assert plan.single
    assert plan.updates[0].terms == {"task": 1.0, "kd": 1.0, "reg": 1.0}


def test_a_stage_restricts_terms_and_parameters():
    plan = plan_of(KD(), stage=Stage(terms=("task",), trains=("student.head",)))
    assert plan.updates[0].terms == {"task": 1.0}
    assert plan.updates[0].params == ("student.head.weight",)


def test_covers():
    assert covers(("student",), "student.a.b")
    assert covers(("method.aug*",), "method.augmentor.w")
    assert not covers(("student",), "students.a")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: plan_of(KD(), weights={"method": {"kd": 1, "kdd": 1}}), "method.weights.kdd: .* did you mean 'kd'"),
        (lambda: plan_of(KD(), weights={}), "term 'kd' has no weight: set method.weights.kd"),
        (lambda: plan_of(KD(), ("task",)), "two owners give a term of the same name: task"),
        (lambda: plan_of(Faulty("unknown term")), "an update names term 'dk': did you mean 'kd'"),
        (lambda: plan_of(Faulty("no parameter")), r"reaches no trainable parameter \(\('sudent',\)\)"),
        (lambda: plan_of(Faulty("orphan")), r"no update trains student.stem \(2 such parameters\)"),
        (lambda: plan_of(Faulty("group")), "share group 0, so one forward, but not batch and modes"),
        (lambda: merge_roles({"augment": MeanTeacher.roles, "method": Swift.roles}), "these two do not compose"),
        (lambda: merge_stages({"quant": Rounded(), "method": Rounded()}), "quant and method each bring their own"),
    ],
)
def test_errors_are_one_line(make, line):
    with pytest.raises(KDBenchError, match=line) as error:
        make()
    assert "\n" not in str(error.value)


def test_roles_and_stages_are_merged():
    roles = merge_roles({"quant": Plugin.roles, "method": Mutual.roles})
    assert list(roles) == ["student", "peer"]
    assert roles["peer"] == Role("train", side="teacher")
    assert [s.name for s in merge_stages({"quant": Rounded(), "method": KD()})] == ["float", "rounded"]
    assert merge_stages({"method": KD()}) == merge_stages({}) == (Stage(),)
