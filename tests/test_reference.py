from __future__ import annotations

import subprocess
import sys

import pytest

from kdbench import reference
from kdbench.configuration import config
from kdbench.errors import KDBenchError
from tests.cli import ROOT

FILE = """\
# @package _global_
# What begins the file,
# in two lines.
defaults:
  - other
rate: 1.0   # behind the key; with 'a' and #b
# Above the key
# and its second line.
name: "a # b"
part:       # of the whole
  list: [1,
    2]      # behind a value of two lines
  block:
    - 1
  plain: x
  options: {a: 1, b: '|'}   # x | y
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(FILE)
    return path


def test_comments_are_those_behind_and_above_a_key(path):
    assert reference.header(path) == "What begins the file, in two lines."
    assert [(e.key, e.value, e.meaning) for e in reference.entries(path)] == [
        ("rate", "1.0", "behind the key; with 'a' and #b"),
        ("name", '"a # b"', "Above the key and its second line."),
        ("part", "", "of the whole"),
        ("part.list", "[1,\n    2]", "behind a value of two lines"),
        ("part.block", "- 1", ""),
        ("part.plain", "x", ""),
        ("part.options", "{a: 1, b: '|'}", "x | y"),
    ]
    assert "| `p.part.options` | `{a: 1, b: '\\|'}` | x \\| y |" in reference._table(reference.entries(path), "p.")


def test_the_page_is_what_the_files_say():
    """Stale? ``python -m kdbench.reference`` writes it anew."""
    assert (ROOT / "docs" / "reference.md").read_text() == reference.page()
    assert "docs/reference.md" in (ROOT / "README.md").read_text()


def test_the_page_has_every_option_and_key():
    page = reference.page()
    for group in (g for g in config.GROUPS if g != "logger"):
        for option in (p.stem for p in (ROOT / "conf" / group).glob("[!_]*.yaml")):
            assert f"### `{group}={option}`\n" in page
    for key in (
        "`trainer.epochs`",
        "`teacher.data`",
        "`data.keep`",
        "`method.freeze_teacher_gamma`",
        "`tuning.factors`",
    ):
        assert key in page
    assert "| `method.neighbours` | `128` | K |" in page
    # What data sets share is said under each of them.
    shared = "| `data.noise` | `0.0` | share of the training labels that are wrong; validation and test stay clean |"
    takers = [p.stem for p in (ROOT / "conf" / "data").glob("[!_]*.yaml") if "_images@_here_" in p.read_text()]
    assert page.count(shared) == len([*takers, "the default of classification", "shifted_mnist by shifted_digits"])
    assert "| `data.root` | `null` | holds cifar-10-batches-bin or cifar-10-batches-py |" in page


def test_help_explains_what_is_chosen():
    said = reference.help_text(["task=classification", "method=kd", "method.temperature=3"]).splitlines()
    explained = {line.partition("=")[0]: line.partition("  # ")[2] for line in said}
    assert explained["method.temperature"] == "adversarial: learned against the student (CTKD)"
    assert "method.temperature=3.0" in "\n".join(said)
    assert explained["trainer.clip"] == "largest gradient norm of an update"
    assert explained["data.labels"].startswith("few labels")
    assert "method.neighbours" not in explained
    other = reference.help_text(["task=pointcloud", "method=pointdistiller"])
    assert "  # N, most important positions of a batch" in other
    assert "task.pillar=[0.32, 0.32]" in other
    with pytest.raises(KDBenchError, match="did you mean 'epochs'"):
        reference.help_text(["trainer.epoch=3"])


def test_pages_and_help_need_no_torch():
    code = (
        "import sys; from kdbench.reference import page, help_text; page(), help_text(); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout == "False\n"
