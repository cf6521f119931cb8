from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import KDBenchError
from leaderboard.agreement import reasons
from leaderboard.boards import build
from leaderboard.releases import LOG, Snapshot, compare, newest, release, snapshot, vanished
from leaderboard.rows import RECORDS, read
from tests.leaderboard.rows import in_order, row


def held(*methods: str, seeds: int = 3) -> Snapshot:
    return snapshot(build(in_order([row(m, s, 70.0, content_hash=f"{m}{s}") for m in methods for s in range(seeds)])))


def test_a_release_lists_rows_with_the_hash_of_each_seed() -> None:
    assert held("kd") == {
        "kd-a_b-4": {
            "task": "classification",
            "method": "kd",
            "setting": "a_b · shapes · quick",
            "metric": "accuracy",
            "score": 70.0,
            "seeds": {"0": "kd0", "1": "kd1", "2": "kd2"},
        }
    }


def test_the_log_says_what_was_added_changed_and_vanished(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    release("2026.1", held("kd", "at"), {}, tmp_path)
    assert list(vanished(held("kd", "at", "sp"), {}, tmp_path)) == []
    changes = release("2026.2", held("kd", "at", "sp", seeds=4), {}, tmp_path)
    assert changes == (["sp-a_b-4"], ["at-a_b-4", "kd-a_b-4"], [])
    (problem,) = vanished(held("kd", "at", seeds=4), {}, tmp_path)
    assert "classification sp (a_b · shapes · quick, `sp-a_b-4`) was in release 2026.2 and is gone" in problem.reason
    with pytest.raises(KDBenchError, match="vanished since 2026.2"):
        release("2026.3", held("kd", "at", seeds=4), {}, tmp_path)
    why = {"sp-a_b-4": "its loss was wrong"}
    assert list(vanished(held("kd", "at", seeds=4), why, tmp_path)) == []
    release("2026.3", held("kd", "at", seeds=4), why, tmp_path)
    text = (tmp_path / LOG).read_text()
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == ["## 2026.3", "## 2026.2", "## 2026.1"]
    assert "- classification sp (a_b · shapes · quick, `sp-a_b-4`), 4 seeds: its loss was wrong" in text
    found = newest(tmp_path)
    assert found is not None
    assert (found[0], compare(found[1], held("kd", "at", seeds=4))) == ("2026.3", ([], [], []))


@pytest.mark.parametrize("name", ["", "a/b", "..", "2026.1"])
def test_a_name_is_new_and_plain(tmp_path: Path, name: str) -> None:
    release("2026.1", {}, {}, tmp_path)
    with pytest.raises(KDBenchError, match="expected a new name"):
        release(name, {}, {}, tmp_path)


def test_a_release_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("# x\n\n## gone\n")
    with pytest.raises(KDBenchError, match="names this release, and it cannot be read"):
        newest(tmp_path)


def test_no_row_of_the_newest_release_is_gone_without_a_reason() -> None:
    assert list(vanished(snapshot(build(read([RECORDS]).rows)), reasons([RECORDS])[0])) == []
