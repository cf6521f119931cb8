"""Words of others on the terminal: nothing in them is read as a style, whoever prints them."""

from __future__ import annotations

import ast
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from kdbench.base.terminal import WIDTH, terminal, text_column
from tests.cli import ROOT, CliToy, CommandLine

HOSTILE = "no [/home/x] here, [red]not red[/red], [3], \\[x], :bomb: and [/]"
HOME = "kdbench/base/terminal.py"


def name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def sources() -> list[Path]:
    found = [p for folder in ("kdbench", "tasks", "leaderboard", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    assert len(found) > 100
    return [path for path in found if path.relative_to(ROOT).as_posix() != HOME]


def test_whoever_prints_takes_the_console_that_reads_no_markup():
    """The one place that may make a console or a text column is ``kdbench.base.terminal``."""
    for path in sources():
        text = path.read_text()
        if "rich" not in text:
            continue
        tree = ast.parse(text)
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "rich" for node in ast.walk(tree)), path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            assert name(call) not in ("Console", "TextColumn", "SpinnerColumn", "from_markup"), f"{path}:{call.lineno}"
            assert not any(k.arg in ("markup", "emoji") for k in call.keywords), f"{path}:{call.lineno}"


def test_every_place_for_text_shows_it_as_it_is(capsys):
    console = terminal()
    assert console.width == WIDTH
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE, footer=HOSTILE)
    table.add_row(HOSTILE, HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == HOSTILE
    assert printed.count(HOSTILE) >= 5
    live = Console(force_terminal=True, width=200, markup=True)
    with Progress(text_column("{task.description}"), text_column("{task.fields[status]}"), console=live) as bar:
        bar.add_task(HOSTILE, status=HOSTILE)
    assert capsys.readouterr().out.count(HOSTILE) >= 2


def test_brackets_in_a_message_break_no_report(tmp_path, monkeypatch, capsys):
    """Neither that of the run, nor that of its sweep, nor its exit code."""
    kdbench = CommandLine(tmp_path, monkeypatch, capsys)

    def refuse(self: CliToy, *_: object, **__: object) -> None:
        raise ValueError(HOSTILE)

    with monkeypatch.context() as patch:
        patch.setattr(CliToy, "loss", refuse)
        ran = kdbench("-m", "method=none", "role=student", "seed=0,1")
    assert ran.code == 1
    assert ran.out.count(f"failed: ValueError: {HOSTILE}\n") == 2
    assert ran.out[ran.out.rindex("sweep") :].count(" failed ") == 2
    with monkeypatch.context() as patch:
        patch.setattr(CliToy, "prepare", refuse)
        ran = kdbench("-m", "method=none", "role=student", "seed=0,1")
    assert ran.code == 1
    cells = " ".join(ran.out[ran.out.rindex("sweep") :].replace("│", " ").split())
    assert cells.count("ValueError: no [/home/x] here,") == 2


def test_brackets_in_a_folder_stay_in_the_report(tmp_path, monkeypatch, capsys):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    ran = kdbench("method=none", "role=student", "results='[a]/x'")
    assert ran.code == 0, ran.err
    assert "record: [a]/x/toy/none/" in ran.out
