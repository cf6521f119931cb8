"""``python -m kdbench.results``: what lies in the results folder, the seeds of one specification in one row."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from kdbench.base.startup import lenient_output, own_imports
from kdbench.base.terminal import terminal
from kdbench.errors import KDBenchError
from kdbench.records.record import RUN, find_records, read_record
from kdbench.runs.summary import cells, rows, table


def main(arguments: list[str] | None = None) -> int:
    """Lists records; exits with 1 if one cannot be read or there is none."""
    parser = argparse.ArgumentParser(
        "python -m kdbench.results",
        description="Lists the runs of a results folder: a table on a terminal, tab-separated columns on a pipe.",
    )
    parser.add_argument("results", nargs="*", type=Path, default=[Path("results")], metavar="RESULTS")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    options = parser.parse_args(arguments)
    records, code = [], 0
    for folder in options.results:
        paths = [folder] if (folder / RUN).is_file() else find_records(folder)
        if not paths:
            print(f"kdbench: error: {folder}: no records there, expected a results folder", file=sys.stderr)
            code = 1
        for path in paths:
            try:
                records.append((path, read_record(path)))
            except KDBenchError as error:
                print(f"kdbench: error: {error}", file=sys.stderr)
                code = 1
    found = rows(records)
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
    elif found and sys.stdout.isatty():
        terminal().print(table(found, "results"))
    elif found:
        print("\t".join(cells(found[0])))
        for row in found:
            print("\t".join(cells(row).values()))
    return code


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    lenient_output()
    own_imports()
    sys.exit(main())
