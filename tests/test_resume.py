"""A run that is killed at any moment and started again ends where an uninterrupted one ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.records.record import find_records, read_record
from kdbench.records.schema import Record
from tests.cli import ROOT, install
from tests.toy import same

KILLS = int(os.environ.get("KDBENCH_SOAK", "5"))
EPOCHS = 8
ARGUMENTS = ("task=toy", "preset=quick", "method=fitnet", "method.weights.hint=0.1", f"trainer.epochs={EPOCHS}")


def command(folder: Path, site: Path) -> None:
    """``python -m kdbench`` in a fresh process whose output goes to a file."""
    os.chdir(ROOT)
    sys.path.insert(0, str(site))
    sys.argv = ["kdbench", *ARGUMENTS, f"results={folder / 'results'}", f"cache={folder / 'cache'}"]
    with (folder / "out.txt").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        from kdbench.__main__ import main

        main()


@dataclass
class Whole:
    """An uninterrupted run."""

    start: Callable[[Path], Any]
    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    # Forked from a server that holds the imports, so that a kill falls into a run and not into `import torch`.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["kdbench.runs.run", "kdbench.training.fit", "kdbench.training.measure", "tests.cli", "tests.test_resume"]
    )
    site = install(tmp_path_factory.mktemp("site"))

    def start(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        (folder / "out.txt").touch()
        process = context.Process(target=command, args=(folder, site))
        process.start()
        return process

    for name in ("warm", "whole"):  # the first one also starts the server
        folder = tmp_path_factory.mktemp(name)
        began = time.monotonic()
        process = start(folder)
        process.join()
        assert process.exitcode == 0, (folder / "out.txt").read_text()
    return Whole(start, folder, time.monotonic() - began)


def record(folder: Path) -> tuple[Path, Record]:
    (path,) = find_records(folder / "results")
    return path, read_record(path)


def manifests(folder: Path) -> dict[str, bytes]:
    """Those of finished products; a kill may fall between the manifest, which is written last, and the final name."""
    found = folder.glob("cache/model/*/manifest.json")
    return {path.parent.name.removesuffix(".work"): path.read_bytes() for path in found}


def last_epoch(folder: Path) -> dict[str, int]:
    """The epochs that the interrupted training had behind it, by the stage's name; nothing if it was none."""
    found = {}
    for path in folder.glob("cache/model/*.work/scratch/*/last.ckpt"):
        if (path.parents[2] / "manifest.json").exists():
            continue
        history = next(iter(torch.load(path, weights_only=True)["callbacks"].values()))
        found[path.parents[2].name.removesuffix(".work")] = len(history["rows"])
    return found


def epochs(text: str) -> list[tuple[str, int]]:
    return [(stage, int(epoch)) for stage, epoch in re.findall(rf"^(\w+): epoch (\d+)/{EPOCHS}", text, re.MULTILINE)]


def plain(record: Record) -> dict[str, Any]:
    """What two runs of one command share: all but clocks and folders."""
    values = json.loads(
        record.model_dump_json(include={"scores", "terms", "gap_closed", "run_id", "spec_hash", "cost"})
    )
    for clock in ("wall_s", "peak_rss_mb"):
        assert values["cost"].pop(clock) > 0
    return values


@pytest.mark.parametrize("attempt", range(KILLS))
def test_kill_at_random(whole: Whole, tmp_path: Path, attempt: int) -> None:
    moment = np.random.default_rng(attempt).uniform(0, whole.seconds)
    process = whole.start(tmp_path)
    time.sleep(moment)
    process.kill()
    process.join()
    before, (said, behind) = manifests(tmp_path), ((tmp_path / "out.txt").read_text(), last_epoch(tmp_path))
    process = whole.start(tmp_path)
    process.join()
    out = (tmp_path / "out.txt").read_text()
    assert process.exitcode == 0, out

    # Nothing that was finished is made again, and what was interrupted goes on where it was.
    after = manifests(tmp_path)
    assert len(after) == 3
    assert before == {key: after[key] for key in before}
    resumed = epochs(out[len(said) :])
    names = ("teacher", "scratch", "student")[len(before) :]
    done = next(iter(behind.values()), 0)
    expected = [(name, epoch) for name in names for epoch in range(1, EPOCHS + 1)]
    assert resumed == expected[done:]

    # The result is that of an uninterrupted run, bit for bit.
    (expected_path, expected_record), (path, found) = record(whole.folder), record(tmp_path)
    assert plain(found) == plain(expected_record)
    assert same(*(load_file(p / "student.safetensors") for p in (expected_path, path)))
    assert (path / "metrics.csv").read_bytes() == (expected_path / "metrics.csv").read_bytes()
    assert not list(tmp_path.glob("cache/model/*.work"))
