"""The command line; the site itself is a stand-in here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench import matrix
from kdbench.records.schema import json_schema
from leaderboard import rows
from leaderboard.__main__ import main
from tests.leaderboard.make_records import records, write

ROOT = Path(__file__).resolve().parents[2]
Output = pytest.CaptureFixture[str]


def no_cells() -> list[matrix.Cell]:
    """In a module, as it is called in another process."""
    return []


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What the site was asked for; the cache and the records of the package are elsewhere."""
    calls: list[dict[str, Any]] = []

    def build(out: Path, found: rows.Found, boards: Any, **options: Any) -> Any:
        calls.append({"out": out, "found": found, "boards": boards, **options})
        return SimpleNamespace(out=out, pages=7)

    (tmp_path / "records").mkdir()
    monkeypatch.setitem(sys.modules, "leaderboard.build", SimpleNamespace(build=build))
    monkeypatch.setattr(matrix, "cells", no_cells)
    monkeypatch.setattr(rows, "RECORDS", tmp_path / "records")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return calls


def test_without_arguments_results_if_they_are_there(
    built: list[dict[str, Any]], tmp_path: Path, capsys: Output
) -> None:
    assert main([]) == 0
    assert (built[0]["out"], len(built[0]["found"].rows)) == (Path("site"), 0)
    write(tmp_path / "results", records(3, seed=3))
    assert main([]) == 0
    assert len(built[1]["found"].rows) == 3
    assert built[1]["found"].parsed == 3
    assert len(built[1]["anchors"]) > 300
    assert main([]) == 0
    assert built[2]["found"].parsed == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "3 runs, 7 pages: site/index.html"
    assert output.err == ""


def test_folders_and_options(built: list[dict[str, Any]], tmp_path: Path, capsys: Output) -> None:
    write(tmp_path / "a", records(3, seed=3))
    write(tmp_path / "records", records(3, seed=3))
    (tmp_path / "b").mkdir()
    assert main(["a", "b", "--out", "here", "--seeds", "2"]) == 0
    (call,) = built
    assert (call["out"], call["minimum"], len(call["found"].rows), call["found"].copies) == (Path("here"), 2, 3, 3)
    assert capsys.readouterr().err == "leaderboard: b holds no run record (results=DIR of the runs?)\n"


def test_a_refused_record_is_told_and_the_site_still_builds(
    built: list[dict[str, Any]], tmp_path: Path, capsys: Output
) -> None:
    write(tmp_path / "a", records(3, seed=3))
    for number in range(25):
        (tmp_path / "a" / f"bad{number:02}").mkdir()
        (tmp_path / "a" / f"bad{number:02}" / "run.json").write_bytes(b"")
    assert main(["a"]) == 1
    assert len(built[0]["found"].rows) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[0].startswith(f"leaderboard: {tmp_path}/a/bad00/run.json: the file is empty")
    assert lines[-1] == "leaderboard: … and 5 more; leaderboard check lists all"


def test_a_folder_that_is_not_there(built: list[dict[str, Any]], capsys: Output) -> None:
    assert main(["nowhere"]) == 1
    assert built == []
    assert capsys.readouterr().err == (
        "leaderboard: error: nowhere: no such folder, expected one with run records (results=DIR of the runs)\n"
    )
    assert main(["check", "nowhere"]) == 1


def test_check(tmp_path: Path, capsys: Output) -> None:
    write(tmp_path / "a", (r for r in records(30, seed=3, tasks=2, specs=2) if r.task == "pointcloud"))
    assert main(["check", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == "14 records read, 0 problems\n"
    bad = tmp_path / "a" / "bad" / "run.json"
    bad.parent.mkdir()
    bad.write_text("{")
    assert main(["check", str(tmp_path / "a")]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{bad}: not valid JSON")
    assert last == "14 records read, 1 problem"
    (tmp_path / "b").mkdir()
    assert main(["check", str(tmp_path / "b")]) == 1
    assert "no run record here" in capsys.readouterr().err


def test_the_committed_schema_is_current(capsys: Output) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json_schema()
    committed = (ROOT / "leaderboard" / "schema.json").read_text()
    assert committed == printed, "run: python -m leaderboard schema > leaderboard/schema.json"


def test_the_leaderboard_does_without_torch_and_starts_fast() -> None:
    code = """if True:
        import sys
        import leaderboard.across, leaderboard.anchors, leaderboard.check, leaderboard.__main__
        assert not {"torch", "lightning", "scipy.stats"} & set(sys.modules)
        assert not [name for name in sys.modules if name.split(".")[0] == "tasks"]
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
