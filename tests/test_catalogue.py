"""The generated pages, and what they take from docstrings."""

from __future__ import annotations

import inspect

import pytest

import kdbench.functional as library
from kdbench import catalogue
from kdbench.configuration.resolved import ENGINE_KEYS
from tests.cli import ROOT

METHODS = catalogue.methods()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("methods.md", catalogue.methods_page),
        ("functional.md", lambda: catalogue.with_table((ROOT / "docs" / "functional.md").read_text())),
    ],
)
def test_the_page_is_that_of_today(page, made):
    assert (ROOT / "docs" / page).read_text() == made(), "run: python -m kdbench.reference"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_its_paper_and_what_each_option_means(name):
    _, given, cls = METHODS[name]
    assert any(year in catalogue.paper_of(cls) for year in map(str, range(2014, 2027)))
    options = given.keys() - ENGINE_KEYS - {"_target_"}
    assert options <= inspect.signature(cls).parameters.keys()
    assert {key for key in options if not catalogue.arguments(cls).get(key)} == set()


def test_a_stale_page_is_noticed(monkeypatch):
    monkeypatch.setattr(METHODS["kd"][2], "__doc__", "Something else.")
    assert catalogue.methods_page() != page("methods.md")


@pytest.mark.parametrize("name", library.__all__)
def test_a_loss_says_in_one_line_what_it_is(name):
    first = (inspect.getdoc(getattr(library, name)) or "").partition("\n\n")[0]
    assert first.endswith(".")
    assert f"| `{name}` |" in page("functional.md")


def test_options_of_several_lines_and_of_the_class_above():
    class Above:
        """What it is.

        Args:
            first: Of one line.
            second: Of
                two lines.
        """

    class Below(Above):
        """Says nothing of options."""

    assert catalogue.arguments(Below) == {"first": "Of one line.", "second": "Of two lines."}
