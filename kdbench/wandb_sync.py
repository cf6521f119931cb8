"""Past records to Weights & Biases: ``python -m kdbench.wandb_sync [RESULTS…] [--project P] [--entity E]``.

What is there already is not sent again, so the command can be repeated after new runs, or when the network broke.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import yaml

from kdbench.errors import KDBenchError
from kdbench.mirror.wandb_run import CONTENT, STEP, RunInfo, offline_reason, one_line, replay, send, start
from kdbench.records.record import CONFIG, RUN, find_records, read_record
from kdbench.records.schema import Record


def main(arguments: list[str] | None = None) -> int:
    """Pushes every record below the given folders; returns 1 where one could not be read or sent."""
    parser = argparse.ArgumentParser("python -m kdbench.wandb_sync", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, default=[Path("results")], help="default: results")
    parser.add_argument("--project", default="kdbench")
    parser.add_argument("--entity", help="user or team; the key's default where it is not given")
    options = parser.parse_args(arguments)
    os.environ.pop("WANDB_MODE", None)  # of the training; this command is here to send
    import wandb

    pushed, known, problems = 0, 0, 0
    try:
        for folder in _folders(options.results):
            if reason := offline_reason(wandb):
                raise KDBenchError(f"{reason}: {pushed} pushed, {known} there already; the records are as they were")
            try:
                url = push(read_record(folder), folder, options.project, options.entity)
            except KDBenchError as error:
                problems += 1
                print(f"kdbench: error: {error}", file=sys.stderr)
            except Exception as error:  # whatever W&B meets, the other records go on
                problems += 1
                print(f"kdbench: error: {folder}: not pushed: {one_line(error)}", file=sys.stderr)
            else:
                pushed, known = pushed + (url is not None), known + (url is None)
                print(f"there already  {folder}" if url is None else f"pushed         {folder}  {url}", flush=True)
    except KDBenchError as error:
        print(f"kdbench: error: {error}", file=sys.stderr)
        return 1
    print(f"{pushed} pushed, {known} there already" + (f", {problems} not pushed" if problems else ""))
    return int(problems > 0)


def push(record: Record, folder: Path, project: str = "kdbench", entity: str | None = None) -> str | None:
    """Sends a record with its history to the W&B run of its id.

    Args:
        record: The record.
        folder: Its folder.
        project: W&B project.
        entity: W&B user or team.

    Returns:
        The run's address; None where it holds this record whole.

    Raises:
        KDBenchError: The record has no readable config.
        Exception: W&B did not take it.
    """
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
        directions = {f"val/{record.primary.name}": record.primary.higher_is_better} if record.primary else {}
        info = RunInfo.of(config, run_id=record.run_id, spec_hash=record.spec_hash, directions=directions)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise KDBenchError(f"{folder / CONFIG}: not the configuration of a run ({one_line(error)})") from None
    history = folder / "metrics.csv"
    # W&B keeps a copy of what it sends, which nobody needs beside the record.
    with tempfile.TemporaryDirectory(prefix="kdbench-wandb-", ignore_cleanup_errors=True) as scratch:
        run = start(
            info,
            Path(scratch),
            project=project,
            entity=entity,
            mode="online",
            finish_timeout_raises=True,
            x_disable_stats=True,  # of this machine, now
        )
        whole = run.summary.get(CONTENT) == record.content_hash
        try:
            if not whole:
                there = run.summary.get(STEP, -1) if run.resumed else -1
                if history.is_file():
                    replay(history, lambda values, step: run.log({**values, STEP: step}), after=there)
                send(run, info, record, folder)
        finally:
            run.finish(exit_code=int(record.status != "ok"))
        return None if whole else str(run.url)


def _folders(results: list[Path]) -> list[Path]:
    found = []
    for place in results:
        folders = [place] if (place / RUN).is_file() else find_records(place)
        if not folders:
            raise KDBenchError(f"{place}: no records there, expected a results folder or a run folder")
        found += folders
    return found


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    own_imports()
    lenient_output()
    sys.exit(main())
