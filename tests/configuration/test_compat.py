from __future__ import annotations

import pytest

from kdbench.configuration.compat import bind
from kdbench.errors import KDBenchError
from kdbench.features import Grid, Logits, Points, Tokens
from kdbench.needs import Need
from kdbench.plugin import Method
from tests.plugins import KD, Adversary, Hint, PerHead, Reuse
from tests.toy import TAPS, Toy

PAIR = {"name": "toy", "student": {"taps": TAPS}, "teacher": {"taps": TAPS, "parts": {"classifier": "head"}}}


class Any(Method):
    needs = (Need("deep", (Tokens, Grid)), Need("all", Grid, many=True))


class Cloud(Method):
    needs = (Need("points", Points),)


class Levels(Method):
    needs = (Need("level", Grid, pyramid=True), Need("maps", (Logits, Grid), given={Logits: "dense_label"}))


class Pyramid(Toy):
    capabilities = Toy.capabilities | {"pyramid"}


class Mapped(Toy):
    capabilities = Toy.capabilities | {"dense_label"}


class Heads(Toy):
    @classmethod
    def kinds(cls, side):
        return {"verb": Logits, "object": Logits}


class Plain(Toy):
    capabilities = frozenset()


def test_a_need_binds_by_name_then_to_the_deepest_of_its_kind():
    assert bind(KD, Toy, PAIR) == {"logits": "logits"}
    assert bind(Hint, Toy, PAIR) == {"body": "body"}
    assert bind(Any, Toy, PAIR) == {"deep": "body", "all": ["stem", "body"]}


def test_a_feature_must_come_from_every_side():
    shallow = {**PAIR, "student": {"taps": {"stem": "stem"}}}
    assert bind(Any, Toy, shallow)["all"] == ["stem"]


def test_the_configuration_comes_first():
    assert bind(Hint, Toy, PAIR, {"body": "stem"}) == {"body": "stem"}
    assert bind(Any, Toy, PAIR, {"all": ["stem"]})["all"] == ["stem"]


def test_a_need_for_each_binds_to_all_of_its_kind_and_to_one_as_to_one():
    assert bind(PerHead, Heads, PAIR) == {"logits": ["verb", "object"]}
    assert bind(PerHead, Heads, PAIR, {"logits": ["object"]}) == {"logits": "object"}
    assert bind(PerHead, Toy, PAIR) == {"logits": "logits"}


def test_a_pyramid_is_read_whole_and_other_grids_one_by_one():
    assert bind(Levels, Pyramid, PAIR)["level"] == ["stem", "body"]
    assert bind(Levels, Toy, PAIR)["level"] == "body"
    for task in (Toy, Pyramid):
        assert bind(Levels, task, PAIR, {"level": ["stem", "body"]})["level"] == ["stem", "body"]
        assert bind(Levels, task, PAIR, {"level": "stem"})["level"] == "stem"


def test_a_kind_may_serve_under_a_capability_alone():
    assert bind(Levels, Toy, PAIR)["maps"] == "body"
    assert bind(Levels, Mapped, PAIR)["maps"] == "logits"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: bind(Cloud, Toy, PAIR),
            "Cloud needs Points .*, which task toy with pair toy does not give",
        ),
        (lambda: bind(Adversary, Plain, PAIR), "requires differentiable_input, which task toy lacks"),
        (lambda: bind(Hint, Toy, PAIR, {"bdoy": "stem"}), "bind.bdoy: unknown need: did you mean 'body'"),
        (
            lambda: bind(Hint, Toy, PAIR, {"body": "pooled"}),
            "bind.body=pooled: .* a Grid of pair toy: available",
        ),
        (
            lambda: bind(Hint, Toy, PAIR, {"body": ["stem", "body"]}),
            r"bind.body=.*: found 2 features, Hint reads one: take one of stem, body",
        ),
        (lambda: bind(KD, Heads, PAIR, {"logits": ["verb", "object"]}), "found 2 features, KD reads one"),
        (lambda: bind(Any, Toy, PAIR, {"all": []}), "found 0 features"),
        (lambda: bind(Reuse, Toy, {**PAIR, "teacher": PAIR["student"]}), "calls the part 'classifier'"),
    ],
)
def test_what_does_not_fit_is_one_line(make, line):
    with pytest.raises(KDBenchError, match=line) as error:
        make()
    assert "\n" not in str(error.value)
