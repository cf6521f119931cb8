from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.records.record import content_hash
from kdbench.records.schema import Record
from tests.leaderboard.browsing import CHROMIUM
from tests.leaderboard.make_records import records, write
from tests.records.test_record import fields

#: Of records among which every status occurs.
SEED = 8


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A small tree of records of every kind: tasks, tuned or not, failed, without headroom."""
    folder = tmp_path / "results"
    write(folder, records(60, seed=SEED, tasks=2, seeds=3, specs=10))
    return folder


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes one record; keys with dots change nested fields, and the hash is right unless it is given."""

    def save(root: Path | None = None, name: str | None = None, **changes: Any) -> Path:
        data = json.loads(Record.model_validate(fields()).model_dump_json())
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = data
            for parent in parents:
                node = node[parent]
            node[last] = value
        if "content_hash" not in changes:
            data["content_hash"] = content_hash(Record.model_validate(data))
        folder = (root or tmp_path / "one") / "classification" / "kd" / (name or str(data["run_id"])[:40])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(data))
        return folder / "run.json"

    return save


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests that need one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing (pip install -e '.[dev]')")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
