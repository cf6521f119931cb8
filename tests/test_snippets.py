"""The Python that the documents show, run as it stands: the blocks of a page one after the other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import kdbench
from tests.cli import ROOT

PAGES = ("functional.md", "python.md")


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    found: dict[str, Any] = {}

    def run(name: str) -> dict[str, Any]:
        for block in blocks(name):
            exec(compile(block, name, "exec"), found)
        return found

    return run


def test_losses_in_a_plain_loop(session):
    with torch.random.fork_rng():
        found = session("functional.md")
        untrained = found["accuracy"](found["network"](8))
    assert found["scores"].keys() == {"teacher", "kd", "dkd", "hint"}
    assert min(found["scores"].values()) > 0.7
    assert untrained < 0.3


def test_a_run_and_the_engine_with_an_own_trainer(session, capsys):
    found = session("python.md")
    assert found["record"].status == "ok"
    assert capsys.readouterr().out.count("\n") > 2
    student = kdbench.load("results/classification/kd/" + found["record"].run_id)
    assert not student.training
    # The snippet's student, which began at one in ten, has learned.
    logits = found["student"](found["points"])
    assert (logits.argmax(1) == found["labels"]).float().mean() > 0.8


def test_the_engine_takes_25_lines_at_most():
    (block,) = (b for b in blocks("python.md") if "Trainer(" in b)
    assert len([line for line in block.splitlines() if line.strip()]) <= 25


def test_bad_words_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kdbench.KDBenchError, match=r"method=dkdd: there is no such method: did you mean 'dkd'"):
        kdbench.run("method=dkdd")
    with pytest.raises(kdbench.KDBenchError, match="no run record"):
        kdbench.load(tmp_path / "nothing")
