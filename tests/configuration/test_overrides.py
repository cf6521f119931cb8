"""The command line beyond Hydra's grammar; through :mod:`kdbench.configuration.config`, which applies it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kdbench.configuration import config
from kdbench.configuration.overrides import one_by_one, written
from kdbench.errors import KDBenchError

SGD = "torch.optim.SGD"


def load(*overrides: str) -> dict[str, Any]:
    return config.load(["task=classification", "data=digits", *overrides])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((f"trainer.optimizer={{_target_: {SGD}, momentum: 0.9}}",), {"_target_": SGD, "momentum": 0.9}),
        ((f"trainer.optimizer._target_={SGD}", "trainer.optimizer.nesterov=true"), {"_target_": SGD, "nesterov": True}),
        (("trainer.optimizer.lr=0.1", f"trainer.optimizer._target_={SGD}"), {"_target_": SGD, "lr": 0.1}),
        ((f"trainer.optimizer._target_={SGD}",), {"_target_": SGD}),
        (("trainer.optimizer.lr=0.1",), {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.01}),
        (("trainer.optimizer={lr: 0.1}",), {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.01}),
        (
            ("trainer.optimizer={_target_: torch.optim.AdamW, lr: 0.1}",),
            {"_target_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.01},
        ),
    ],
)
def test_another_target_comes_without_the_options_of_the_one_before(overrides, expected):
    assert load(*overrides)["trainer"]["optimizer"] == expected


def test_so_it_is_wherever_a_target_stands():
    constant = load("trainer.scheduler._target_=kdbench.optim.constant")
    assert constant["trainer"]["scheduler"] == {"_target_": "kdbench.optim.constant"}
    assert load("trainer.scheduler.warmup=0.2")["trainer"]["scheduler"]["_target_"] == "kdbench.optim.cosine"
    own = load("pair.student.architecture={_target_: my.Net, depth: 3}")["pair"]["student"]
    assert own["architecture"] == {"_target_": "my.Net", "depth": 3}
    for given in (("student={_target_: my.Net, depth: 3}",), ("student._target_=my.Net", "student.depth=3")):
        assert load(*given)["pair"]["student"]["architecture"] == {"_target_": "my.Net", "depth": 3}
    teacher = load(f"teacher.trainer.optimizer={{_target_: {SGD}, lr: 1}}")["teacher"]["trainer"]
    assert teacher == {"optimizer": {"_target_": SGD, "lr": 1}}


def test_what_the_engine_reads_of_a_method_is_no_option_of_its_class():
    before = load("method=kd")["method"]
    other = load("method=kd", "method._target_=my.Method", "method.depth=3")["method"]
    assert other == {**{k: v for k, v in before.items() if k in ("name", "weights")}, **other}
    assert (other["_target_"], other["depth"]) == ("my.Method", 3)
    assert "temperature" not in other
    own = load("method={name: own, _target_: my.Method, weights: {own: 2}}")["method"]
    assert {k: own[k] for k in ("name", "_target_", "weights")} == {
        "name": "own",
        "_target_": "my.Method",
        "weights": {"own": 2},
    }


def test_a_mapping_changes_what_it_names():
    teacher = load("teacher.data={labels: null, noise: 0.1}", "teacher.trainer={epochs: 3, optimizer: {lr: 1}}")[
        "teacher"
    ]
    data = load()["data"]
    assert teacher["data"] == {**data, "labels": None, "noise": 0.1}
    assert teacher["trainer"]["epochs"] == 3
    assert teacher["trainer"]["optimizer"] == {**load()["trainer"]["optimizer"], "lr": 1}
    assert load("data={labels: 10}")["data"] == {**data, "labels": 10}
    assert load("data.keep={fraction: 0.5}")["data"]["keep"] == {"fraction": 0.5, "by": "random"}
    for wrong, line in (
        ("trainer={epoch: 3}", "trainer.epoch: unknown key: did you mean 'epochs'"),
        ("teacher.trainer={epoch: 3}", "teacher.trainer.epoch: unknown key: did you mean 'epochs'"),
    ):
        with pytest.raises(KDBenchError, match=line):
            load(wrong)


def test_one_by_one_is_text_that_reads_the_same():
    given = ["a={b: 1, c: {d: 'x, y', e: [1, {f: null}]}}", "pair.student.taps={s: conv}", "m.weights={t.peer: 1}"]
    assert one_by_one(given) == [
        "a.b=1",
        "a.c.d=x\\,\\ y",
        "a.c.e=[1,{f:null}]",
        "pair.student.taps={s:conv}",
        "m.weights={t.peer:1}",
    ]
    assert OverridesParser.create().parse_overrides(["a.c.d=x\\,\\ y"])[0].value() == "x, y"
    untouched = ["hydra.launcher={n_jobs: 2}", "++a={b: 1}", "a={b: 1},{b: 2}", "a={}", "a=[{b: 1}]"]
    assert one_by_one(untouched) == untouched


@pytest.mark.parametrize(
    "override", ["data.root=/my data (2)", "data.root=a'b", "data.root=/a,b", 'results=say "it"', "results=a,b$HOME"]
)
def test_what_an_error_advises_works_as_it_stands_in_a_shell(override):
    key, _, value = override.partition("=")
    with pytest.raises(KDBenchError, match="; expected ") as error:
        load(override)
    advice = str(error.value).split("; expected ")[1]
    (argument,) = shlex.split(advice)
    loaded = load(argument)
    assert (loaded["data"]["root"] if key == "data.root" else loaded["results"]) == value


def test_what_the_shell_has_split_is_advised_too():
    with pytest.raises(
        KDBenchError, match=r"teacher.data=\{labels:.*; expected 'teacher.data=\{name: value, …\}', in single"
    ):
        load("teacher.data={labels:", "null}")
    assert written("tuning.factors=[1,") == "'tuning.factors=[value, …]', in single quotes"
    assert written("a b") == "key=value"


def test_a_sweep_may_have_another_target(monkeypatch):
    overrides = ["task=classification,pointcloud", f"trainer.optimizer._target_={SGD}", "trainer.optimizer.lr=0.1,0.2"]
    config.each_choice(overrides)
    assert config.load(config.first(overrides))["trainer"]["optimizer"] == {"_target_": SGD, "lr": 0.1}
