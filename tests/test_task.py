"""What every task owes a run, from the first batch to the record; a new task is tested as soon as it has its YAML."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from kdbench.base.outcomes import OUTCOMES, unpack
from kdbench.configuration import config
from kdbench.records.record import read_record
from kdbench.runs.run import Run
from kdbench.task import Task
from tests import tiny
from tests.cli import EXAMPLE, install
from tests.test_matrix import names


@pytest.fixture
def run(request, tmp_path, monkeypatch) -> Run:
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(install(tmp_path / "example", "kdbench_diabetes", "kdbench_diabetes.conf"))
    where = [f"results={tmp_path / 'results'}", f"cache={tmp_path / 'cache'}"]
    small = ["method=none", "preset=smoke", "trainer.epochs=1", "trainer.accelerator=cpu", "trainer.threads=1"]
    overrides = [f"task={request.param}", *small, *where, *tiny.overrides(request.param, tmp_path)]
    return Run(config.load(overrides), "", Console(file=io.StringIO()))


@pytest.mark.parametrize("run", names("task"), indirect=True, ids=str)
def test_a_run_leaves_a_record_with_a_picture(run):
    outcome = run.execute()
    task: Task = run.task
    assert outcome.status == "ok", outcome.record.reason
    record = read_record(outcome.path)
    assert record.dataset is not None
    assert record.primary is not None
    for scores in (record.scores["teacher"], record.scores["student"]):
        assert scores is not None
        value = scores.test[task.primary]
        assert value is not None
        assert np.isfinite(value)
        assert task.selection in scores.test
    assert (record.files is not None and OUTCOMES in record.files) == bool(task.metric_law)
    if task.metric_law:
        found = unpack((Path(outcome.path) / OUTCOMES).read_bytes())
        assert {"scratch", "student"} <= found.values.keys() <= record.scores.keys()
        for name in found.values:
            assert found.score(name) == pytest.approx(record.scores[name].test[task.primary], rel=1e-4)
    with Image.open(Path(outcome.path) / "preview.png") as picture:
        assert min(picture.size) > 1
    _check_loaders(task, dict(record.dataset.sizes))


def _check_loaders(task: Task, sizes: dict[str, int]) -> None:
    """Of one seed the same batches in the same order; of each split as many samples as the record counts."""
    data, again = task.data(3), task.data(3)
    first, second = (next(iter(d.train_dataloader())) for d in (data, again))
    assert torch.equal(first.ids, second.ids)
    other = next(iter(task.data(4).train_dataloader()))
    whole = len(first.ids) >= sizes["train"]  # a graph is one batch, in its own order
    assert not torch.equal(first.ids, other.ids) or whole or sizes["train"] < 8
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        ids = torch.cat([batch.ids for batch in batches])
        if task.name == "graph":  # every batch is a whole graph; the primary metric is of some nodes of the first
            ids = batches[0].ids[batches[0].targets.sets["scored"]]
        assert len(ids) == sizes[split]
        assert len(ids.unique()) == len(ids)
