from __future__ import annotations

from typing import Literal

import pytest

from kdbench.base.instantiate import check, instantiate, locate
from kdbench.errors import KDBenchError


class Thing:
    def __init__(self, size: int, mode: Literal["a", "b"] = "a", rates: tuple[float, ...] = (), extra=None) -> None:
        self.made = (size, mode, rates, extra)


def free(**options):
    return options


HERE = f"{__name__}.Thing"


def test_options_are_converted_to_the_annotated_types():
    spec = {"_target_": HERE, "size": 3, "rates": [1, 2.5]}
    assert instantiate("method", spec, extra="x").made == (3, "a", (1.0, 2.5), "x")


def test_a_function_with_free_options_is_not_checked():
    assert check("x", free, {"anything": 1}) == {"anything": 1}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"size": 3, "mdoe": "b"}, "method.mdoe: unknown key: did you mean 'mode'"),
        ({"size": "three"}, "method.size: found 'three'"),
        ({"size": 3, "mode": "c"}, "method.mode: found 'c'"),
        ({"size": 3, "rates": [1, "x"]}, "method.rates.1: found 'x'"),
        ({}, "method.size: this key is required by Thing"),
    ],
)
def test_wrong_options_are_one_line(options, line):
    with pytest.raises(KDBenchError, match=line) as error:
        instantiate("method", {"_target_": HERE, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (f"{__name__}.Thnig", "has no 'Thnig': did you mean 'Thing'"),
        ("kdbench.nowhere.Thing", "there is no module 'kdbench.nowhere'"),
        ("nowhere.at.all.Thing", "there is no module 'nowhere'"),
        ("Thing", "is not of the form package.module.Name"),
    ],
)
def test_wrong_targets_are_one_line(target, line):
    with pytest.raises(KDBenchError, match=line):
        locate(target)


def test_a_missing_requirement_is_told_from_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import package_that_is_not_there\nclass Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KDBenchError, match="needs the package 'package_that_is_not_there': run `make setup`"):
        locate("needy.Model")
