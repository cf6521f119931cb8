from __future__ import annotations

import logging

import pytest
from rich.console import Console

from kdbench.errors import KDBenchError
from kdbench.runs.counts import check, table
from kdbench.task import Counts
from tests.toy import Toy

GOOD = Counts(4, {"cat": 3, "dog": 1})


class Counted(Toy):
    def __init__(self, **counts: Counts) -> None:
        self.found = {"train": GOOD, "val": GOOD, "test": GOOD} | counts

    def counts(self):
        return self.found


def test_a_task_that_counts_nothing_is_not_checked():
    check(Toy())
    check(Counted())


@pytest.mark.parametrize(
    ("split", "found", "line"),
    [
        (
            "train",
            Counts(4, {"cat": 0, "dog": 0}),
            r"toy: train holds nothing to learn from \(4 samples, no cat, d",
        ),
        ("train", Counts(0, {}), r"train holds nothing to learn from \(0 samples"),
        (
            "test",
            Counts(4, {"cat": 3}, {"cat": 0}, "no boxes"),
            r"nothing that accuracy counts \(.*at\): no boxes$",
        ),
        ("test", Counts(4, {"cat": 0}), r"test holds nothing that accuracy counts"),
    ],
)
def test_what_the_end_of_a_run_needs_is_asked_for_at_its_start(split, found, line):
    with pytest.raises(KDBenchError, match=line):
        check(Counted(**{split: found}))


def test_validation_is_needed_where_trials_are_compared_on_it(caplog):
    task = Counted(val=Counts(2, {"cat": 2}, {"cat": 0}))
    with caplog.at_level(logging.WARNING):
        check(task)
    assert "val holds nothing that accuracy counts (2 samples, no cat); no epoch is the best" in caplog.text
    with pytest.raises(KDBenchError, match="val holds nothing that accuracy counts"):
        check(task, tuned=True)


def test_a_class_that_is_absent_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        check(Counted(train=Counts(4, {"cat": 3, "dog": 0}, reason="too far away")))
    assert caplog.messages == ["toy: train holds no dog to learn from: too far away"]


def test_the_table_shows_labels_and_what_of_them_is_scored():
    many = {f"c{i}": i for i in range(30)}
    counts = {"train": Counts(9, many, unit="objects"), "test": Counts(5, many, many | {"c2": 1}, unit="objects")}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(counts))
    lines = [" ".join(line.replace("│", " ").split()) for line in captured.get().splitlines()]
    assert any("labelled objects (scored)" in line for line in lines)
    assert "samples 9 5" in lines
    assert "c2 2 2 (1)" in lines
    assert f"10 further classes {sum(range(20, 30))} {sum(range(20, 30))}" in lines
