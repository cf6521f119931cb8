"""What a task promises that writes texts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.base import rng
from kdbench.task import Batch
from kdbench.training.promises import CHECKS
from tests.tasks.text import tiny


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Any:
    task = tiny.task(tmp_path_factory.mktemp("cache"))
    with rng.scope(0, "model"):
        model = task.build(tiny.NET).eval()
    batch = next(iter(task.data(0).train_dataloader()))
    return SimpleNamespace(
        task=task, batch=batch, signals=SimpleNamespace(cast=SimpleNamespace(model=lambda role: model))
    )


def complaint(seen: Any, write: Any) -> str | None:
    changed = SimpleNamespace(ops=lambda: {} if write is None else {"generate": write})
    return CHECKS["generates"](SimpleNamespace(**{**vars(seen), "task": changed}))  # type: ignore[arg-type]


def test_what_is_kept_is_not_complained_of(seen):
    assert CHECKS["generates"](seen) is None


def test_what_is_not_kept_is_one_line(seen):
    write = seen.task.ops()["generate"]

    def labelled(*given: Any) -> Batch:
        return replace(write(*given), supervised=torch.tensor([True, False, False, False]))

    def other(model: Any, batch: Batch, generator: torch.Generator) -> Batch:
        return write(model, batch, torch.Generator().manual_seed(int(torch.randint(99, ()))))

    assert complaint(seen, None) == "ops() has no 'generate'"
    assert complaint(seen, lambda *_: 3) == "ops()['generate'] gives a int for a batch of 4"
    assert complaint(seen, labelled) == "ops()['generate'] gives a batch whose samples are supervised"

    def uncounted(*given: Any) -> Batch:
        return replace(write(*given), memo={})

    assert (
        complaint(seen, uncounted)
        == "ops()['generate'] does not say in the batch's memo how many 'tokens' were written"
    )
    assert complaint(seen, other) == "ops()['generate'] writes two texts for one state of its generator"


def of_corpus(seen: Any, write: Any) -> str | None:
    changed = SimpleNamespace(ops=lambda: {} if write is None else {"write": write})
    return CHECKS["writes"](SimpleNamespace(**{**vars(seen), "task": changed}))  # type: ignore[arg-type]


def test_what_a_task_writes_for_a_corpus(seen):
    write = seen.task.ops()["write"]
    assert CHECKS["writes"](seen) is None
    assert of_corpus(seen, None) == "ops() has no 'write'"
    assert "one row a sample" in str(of_corpus(seen, lambda *_: {"texts": torch.zeros(2, 3)}))
    assert "one row a sample" in str(of_corpus(seen, lambda *_: {"tokens": torch.zeros(3)}))
    assert "two samples for one state" in str(of_corpus(seen, lambda *_: {"tokens": torch.rand(2)}))
    assert write is not None
