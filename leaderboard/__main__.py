"""The command line: ``python -m leaderboard [RESULTS…] [--out DIR]``, ``… check PATH…`` and ``… schema``."""

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
    commands = {"check": check, "schema": schema}
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
        "pass), schema (the JSON schema of run.json).",
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
