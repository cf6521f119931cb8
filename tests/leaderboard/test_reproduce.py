"""The run itself is a stand-in, which writes a record where the command says."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdbench.errors import KDBenchError
from kdbench.records.record import write_record
from kdbench.records.schema import Record
from leaderboard import reproduce as module
from leaderboard.__main__ import main
from leaderboard.boards import build as join
from leaderboard.build import build
from leaderboard.reproduce import choose, reproduce
from leaderboard.rows import read
from leaderboard.verified import VERIFIED, Verification, note, verified
from tests.leaderboard.make_records import records, write

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path / "records", records(9, seed=3, tasks=1, seeds=3, specs=3))
    return tmp_path / "records"


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], list[list[str]]]:
    """Makes the command give the record in hand once more, changed."""
    calls: list[list[str]] = []

    def set_up(change: Change) -> list[list[str]]:
        def run(command: list[str], **options: Any) -> Any:
            if command[0] == "git":
                return SimpleNamespace(returncode=128, stdout=b"")
            calls.append(command)
            words = dict(word.split("=", 1) for word in command[3:])
            assert not any(Path(words["cache"]).rglob("*")), "teacher and twin are trained anew"
            made = next(r for r in records(9, seed=3, tasks=1, seeds=3, specs=3) if r.run_id == wanted[0])
            data = made.model_dump()
            change(data)
            if data["status"] == "ok":
                write_record(Path(words["results"]), Record.model_validate(data), {"config.yaml": "a: 1\n"})
            return SimpleNamespace(returncode=1, stderr="first\nkdbench: error: no such tap\n")

        wanted: list[str] = []
        actual = module.read_record

        def remember(path: Path, **options: Any) -> Record:
            found = actual(path, **options)
            wanted[:] = [found.run_id]
            return found

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(module, "read_record", remember)
        return calls

    return set_up


def kd(tree: Path) -> Any:
    return next(row for row in read([tree]).rows if row.method == "kd" and row.has_score)


def test_the_same_scores_are_bitwise(tree: Path, again: Any) -> None:
    calls = again(lambda data: data["provenance"]["hardware"].update(cpu="Another"))
    found = reproduce(kd(tree))
    assert (found.verdict, found.largest, found.said, found.alike, found.ok) == ("bitwise", 0.0, "", False, True)
    (command,) = calls
    assert command[1:3] == ["-m", "kdbench"]
    assert "method=kd" in command
    assert sum(word.startswith("results=") for word in command) == 1


@pytest.mark.parametrize(("by", "verdict"), [(0.2, "within tolerance"), (30.0, "differs")])
def test_other_scores_are_within_the_tolerance_or_differ(tree: Path, again: Any, by: float, verdict: str) -> None:
    def shift(data: dict[str, Any]) -> None:
        data["scores"]["student"]["test"]["top1"] -= by

    again(shift)
    found = reproduce(kd(tree))
    assert (found.verdict, found.largest) == (verdict, pytest.approx(by))
    assert found.tolerance >= 0.01 * kd(tree).score
    assert found.said.startswith("scores.student.test.top1: ")
    assert found.alike
    assert found.ok == (by < 1)


def test_a_raised_twin_is_found_too(tree: Path, again: Any) -> None:
    again(lambda data: data["scores"]["scratch"]["test"].update(top1=99.0))
    assert reproduce(kd(tree)).verdict == "differs"


def test_each_role_has_the_tolerance_of_its_own_seeds(tree: Path, again: Any) -> None:
    rows = [row for row in read([tree]).rows if row.method == "kd" and row.has_score]
    spread = 2 * float(np.std([row.score or 0.0 for row in rows], ddof=1))
    own = {"student": spread, "teacher": 0.01 * (rows[0].of("teacher") or 0.0)}  # of all seeds one teacher
    assert own["student"] > 0.01 * (rows[0].score or 0.0)
    wide, narrow = sorted(own, key=lambda role: -own[role])
    between = (own[wide] + own[narrow]) / 2
    assert own[wide] > own[narrow]
    for role, verdict in ((wide, "within tolerance"), (narrow, "differs")):

        def shift(data: dict[str, Any], role: str = role) -> None:
            data["scores"][role]["test"]["top1"] -= between

        again(shift)
        found = reproduce(rows[0])
        assert (found.verdict, found.tolerance) == (verdict, pytest.approx(own[role]))


def test_a_run_that_fails_says_its_last_line(tree: Path, again: Any) -> None:
    again(lambda data: data.update(status="failed", reason="x"))
    found = reproduce(kd(tree))
    assert (found.verdict, found.largest, found.said) == ("failed", None, "kdbench: error: no such tap")


def test_the_code_of_the_record_s_commit_is_taken(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a checkout")
    code = module._code(head.stdout.strip(), tmp_path)
    assert code is not None
    assert (code / "kdbench" / "__main__.py").is_file()
    assert not (code / ".git").exists()
    assert module._code("f" * 40, tmp_path / "b") is None
    assert module._code("--output=x", tmp_path / "c") is None
    assert module._code(None, tmp_path / "d") is None


def test_foreign_code_is_not_run(tree: Path, again: Any) -> None:
    from dataclasses import replace

    calls = again(lambda data: None)
    with pytest.raises(KDBenchError, match=r"runs foreign code \(os.system\)"):
        reproduce(replace(kd(tree), command="python -m kdbench student._target_=os.system"))
    assert calls == []


def test_one_seed_of_each_specification(tree: Path) -> None:
    rows = choose([tree], "random", random.Random(0))
    assert sorted(row.method for row in rows) == ["fitnet", "kd", "none"]
    assert {row.seed for n in range(9) for row in choose([tree], "random", random.Random(n))} == {0, 1, 2}
    assert [row.seed for row in choose([tree], "1", random.Random(0))] == [1, 1, 1]
    one = Path(rows[0].path)
    assert choose([one], None, random.Random(0))[0].path == str(one)
    with pytest.raises(KDBenchError, match="say which by --seed random"):
        choose([tree], None, random.Random(0))
    with pytest.raises(KDBenchError, match="--seed 7: not among the seeds here"):
        choose([tree], "7", random.Random(0))
    with pytest.raises(KDBenchError, match="no run record with a score here"):
        choose([tree.parent / "records" / "nowhere"], None, random.Random(0))


def test_the_command_line_notes_it_and_the_board_shows_it(
    tree: Path, again: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(lambda data: None)
    row = kd(tree)
    assert main(["reproduce", row.path, "--note", str(tree)]) == 0
    assert "bitwise, furthest difference of the primary metric 0" in capsys.readouterr().out
    found = read([tree])
    assert found.verified[row.content_hash].verdict == "bitwise"
    site = build(tmp_path / "site", found, join(found.rows), run_pages=0).out
    date = found.verified[row.content_hash].date
    assert f"bitwise, {date}" in (site / "data/task-classification.csv").read_text()
    pages = {p.name.partition("-")[0]: p.read_text() for p in (site / "groups").glob("*.html")}
    assert f'<dt>Verified</dt><dd class="good">bitwise, {date} (run {row.run_id} on' in pages["kd"]
    assert "not verified" in pages["fitnet"]
    again(lambda data: data["scores"]["student"]["test"].update(top1=99.0))
    assert main(["reproduce", row.path]) == 1


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    made = Verification("c", "r", "bitwise", 0.0, 1.0, True, "cpu", "2", None, "2026-01-02")
    note(made, tmp_path)
    with (tmp_path / VERIFIED).open("a") as stream:
        stream.write('{"content_hash": "d"}\nnonsense\n[]\n')
        stream.write((tmp_path / VERIFIED).read_text().splitlines()[0].replace("bitwise", "perfect") + "\n")
        stream.write((tmp_path / VERIFIED).read_text().splitlines()[0].replace("01-02", "01-01") + "\n")
    assert verified([tmp_path]) == {"c": made}
