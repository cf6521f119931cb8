"""The command line: ``python -m leaderboard [RESULTS…] [--out DIR]``, and its other commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.__main__ import own_imports
from kdbench.errors import KDBenchError

if TYPE_CHECKING:
    from leaderboard.rows import Problem

RESULTS, SITE = Path("results"), Path("site")
#: Problems that are told one by one.
SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0, or 1 where a record was refused or the command was wrong.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"check": check, "compare": compare, "recommend": recommend, "release": release, "reproduce": reproduce}
    commands["schema"] = schema
    try:
        if words and words[0] in commands:
            return commands[words[0]](words[1:])
        return site(words)
    except KDBenchError as error:
        print(f"leaderboard: error: {error}", file=sys.stderr)
        return 1


def site(words: Sequence[str]) -> int:
    """Builds the site; records that are refused are told, and the rest of it still builds."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard",
        description="Builds a static site from run records. Other commands: check PATH [PATH…] (what a submission must "
        "pass), compare --task T (every method with one, corrected), recommend task=T (what to try first), reproduce "
        "PATH (run a record again), schema (the JSON schema of run.json).",
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        help=f"folders of run records; {RESULTS}/ if it is there. The records of the package are always among them.",
    )
    parser.add_argument("--out", type=Path, default=SITE, metavar="DIR", help=f"where the site goes ({SITE}/)")
    parser.add_argument("--seeds", type=int, default=None, metavar="N", help="seeds below which a row is grey (3)")
    options = parser.parse_args(words)

    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from kdbench.base.store import default_root
    from kdbench.matrix import cells
    from leaderboard import anchors
    from leaderboard.boards import build as join
    from leaderboard.build import build
    from leaderboard.groups import MINIMUM
    from leaderboard.rows import RECORDS, read

    given = _existing(options.results or [RESULTS][: RESULTS.is_dir()])
    minimum = MINIMUM if options.seeds is None else options.seeds
    # The matrix imports every task and method: beside the reading, and its memory goes with its process.
    with ProcessPoolExecutor(1, get_context("spawn")) as aside:
        matrix = aside.submit(cells)
        found = read([*given, RECORDS], cache=default_root() / "leaderboard")
        for folder in set(given).intersection(found.empty):
            print(f"leaderboard: {folder} holds no run record (results=DIR of the runs?)", file=sys.stderr)
        _tell(found.problems)
        fits = matrix.result()
    built = build(options.out, found, join(found.rows, minimum), anchors=anchors.load(), cells=fits, minimum=minimum)
    print(f"{len(found.rows)} runs, {built.pages} pages: {built.out / 'index.html'}")
    return 1 if found.problems else 0


def check(words: Sequence[str]) -> int:
    """Checks records; one line for each problem."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard check",
        description="Checks run records: schema, content hash, duplicates, names, ranges, contradictions.",
    )
    parser.add_argument("paths", nargs="+", type=Path, help="folders of records, run folders or files")
    options = parser.parse_args(words)

    from leaderboard.check import check as run

    found, problems = run(_existing(options.paths))
    for problem in problems:
        print(f"{problem.path}: {problem.reason}")
    if not found.rows and not problems:
        raise KDBenchError(f"{' '.join(map(str, options.paths))}: no run record here, expected run.json files")
    print(f"{len(found.rows)} records read, {len(problems)} problem{'s' * (len(problems) != 1)}")
    return 1 if problems else 0


def compare(words: Sequence[str]) -> int:
    """Prints what each setting of a task says of every method against one of them."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard compare",
        description="Compares every method with one of them over the seeds that all share, corrected for their number "
        "(Dunnett's test, seeds as blocks, one variance).",
    )
    parser.add_argument("paths", nargs="*", type=Path, help="folders of records; those of the package by default")
    parser.add_argument("--task", required=True, help="whose boards")
    parser.add_argument("--data", help="one data set alone")
    parser.add_argument("--control", default="kd", metavar="METHOD", help="what the others are compared with (kd)")
    parser.add_argument("--markdown", action="store_true", help="as a table for a page")
    options = parser.parse_args(words)

    from kdbench.base.terminal import terminal
    from leaderboard.boards import build as join
    from leaderboard.compare import contrasts, markdown, table
    from leaderboard.rows import RECORDS, read

    boards = join(read(_existing(options.paths or [RECORDS])).rows).tasks.get(options.task, [])
    chosen = [b for b in boards if options.data in (None, b.setting.dataset)]
    if not chosen:
        known = sorted({b.setting.dataset for b in boards}) or "none"
        raise KDBenchError(f"--task {options.task} --data {options.data}: no records; data sets of the task: {known}")
    holding = [b for b in chosen if any(g.method == options.control for g in b.groups)]
    for board in holding or chosen[:1]:  # which says that it is not there
        for found in contrasts(board, options.control):
            if options.markdown:
                print(markdown(board, found, options.control) + "\n")
            else:
                terminal().print(table(board, found, options.control))
    return 0


def recommend(words: Sequence[str]) -> int:
    """Prints which method to try first."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard recommend",
        description="Says from the records which method to try first, what to expect of it and at what cost, and how "
        "good such advice was in settings that it had not seen.",
    )
    parser.add_argument("words", nargs="+", metavar="task=NAME [student=PART]", help="a task; part of a pair's name")
    parser.add_argument(
        "--records", type=Path, nargs="*", default=[], metavar="DIR", help="beside those of the package"
    )
    options = parser.parse_args(words)
    asked = dict(word.partition("=")[::2] for word in options.words)
    if not {"task"} <= asked.keys() <= {"task", "student"}:
        raise KDBenchError(f"{' '.join(options.words)}: expected task=NAME and, if you like, student=PART")

    from kdbench.base.terminal import terminal
    from leaderboard.advice import accuracy, shown
    from leaderboard.advice import recommend as ask
    from leaderboard.boards import build as join
    from leaderboard.rows import RECORDS, read

    boards = join(read([*_existing(options.records), RECORDS]).rows)
    found = ask(boards, asked["task"], asked.get("student"))
    terminal().print(shown(found))
    terminal().print(accuracy(found.trials))
    return 0


def release(words: Sequence[str]) -> int:
    """Writes what the board holds today, and what changed since the release before."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard release",
        description="Writes leaderboard/releases/NAME.json and an entry of its log from the records of the package.",
    )
    parser.add_argument("name", metavar="NAME", help="of the release, such as 2026.11")
    options = parser.parse_args(words)

    from leaderboard import releases
    from leaderboard.agreement import reasons
    from leaderboard.boards import build as join
    from leaderboard.rows import RECORDS, read

    changes, _ = reasons([RECORDS])
    now = releases.snapshot(join(read([RECORDS]).rows))
    found = releases.release(options.name, now, changes)
    counts = ", ".join(f"{len(specs)} {what}" for what, specs in zip(found._fields, found, strict=True))
    print(f"{releases.RELEASES / options.name}.json: {len(now)} rows, {counts}")
    return 0


def reproduce(words: Sequence[str]) -> int:
    """Runs records again; 1 where one does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m leaderboard reproduce",
        description="Runs the command of a record in a clean folder with an empty cache, teacher and twin included, "
        "and compares trials, scores and losses: bit for bit, or within twice the standard deviation of its seeds (1% "
        "of the score where that is more).",
    )
    parser.add_argument("paths", nargs="+", type=Path, help="a record, or folders of records with --seed")
    parser.add_argument("--seed", metavar="N|random", help="which of each specification; random draws one")
    parser.add_argument(
        "--current", action="store_true", help="with the code of today, not that of the record's commit"
    )
    parser.add_argument("--draw", type=int, default=None, metavar="N", help="seed of the drawing itself")
    parser.add_argument("--note", type=Path, metavar="DIR", help="folder of records whose verified.jsonl gets a line")
    options = parser.parse_args(words)

    import random

    from leaderboard.reproduce import choose
    from leaderboard.reproduce import reproduce as run
    from leaderboard.verified import note

    rows = choose(_existing(options.paths), options.seed, random.Random(options.draw))
    bad = 0
    for row in rows:
        print(f"{row.run_id}: {row.command}", flush=True)
        found = run(row, current=options.current)
        bad += not found.ok
        code = "its own commit" if found.commit is not None and found.commit == row.commit else "other code"
        largest = "" if found.largest is None else f", furthest difference of the primary metric {found.largest:.4g}"
        kind = (
            "the kind of machine of the record" if found.alike else f"another kind of machine or torch: {found.machine}"
        )
        print(f"{row.run_id}: {found.verdict}{largest} (tolerance {found.tolerance:.4g}), {code}, on {kind}")
        if found.said:
            print(f"{row.run_id}: {found.said}")
        if options.note is not None:
            note(found, options.note)
    return 1 if bad else 0


def schema(words: Sequence[str]) -> int:
    """Prints the JSON schema of ``run.json``."""
    argparse.ArgumentParser(
        prog="python -m leaderboard schema", description="Prints the JSON schema of run.json."
    ).parse_args(words)

    from kdbench.records.schema import json_schema

    print(json.dumps(json_schema(), indent=1))
    return 0


def _existing(paths: Sequence[Path]) -> list[Path]:
    for path in paths:
        if not path.exists():
            raise KDBenchError(f"{path}: no such folder, expected one with run records (results=DIR of the runs)")
    return list(paths)


def _tell(problems: Sequence[Problem]) -> None:
    for problem in problems[:SHOWN]:
        print(f"leaderboard: {problem.path}: {problem.reason}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"leaderboard: … and {len(problems) - SHOWN} more; leaderboard check lists all", file=sys.stderr)


if __name__ == "__main__":
    own_imports()
    sys.exit(main())
