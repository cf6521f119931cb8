from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from joblib import Parallel, delayed
from torch.utils.data import Dataset

from kdbench.data import EpochSampler, Key, SeededLoader
from tests.toy import Patterns, collate


def ids(loader: SeededLoader) -> list[int]:
    return [int(i) for batch in loader for i in batch.ids]


def test_an_epoch_has_its_own_order_which_does_not_depend_on_what_came_before():
    sampler = EpochSampler(50, seed=0)
    first = list(sampler)
    assert sorted(k.sample for k in first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(3)
    third = list(sampler)
    assert [k.sample for k in third] != [k.sample for k in first]
    fresh = EpochSampler(50, seed=0)
    fresh.set_epoch(3)
    torch.rand(1)
    assert list(fresh) == third
    assert list(EpochSampler(50, seed=1)) != first


class Careless(Dataset[Any]):
    """Augments with numbers of the global generators, as many libraries do."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: Key) -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(1)), key.sample  # noqa: NPY002


def careless(keys: Sequence[Any]) -> Any:
    return list(keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_draws_from_global_generators_is_named_too(workers):
    def epoch(number: int) -> dict[int, tuple[float, ...]]:
        loader = SeededLoader(Careless(), 2, 4, careless, train=True, workers=workers)
        sampler: Any = loader.sampler
        sampler.set_epoch(number)
        return {int(sample[-1]): tuple(sample[:3]) for batch in loader for sample in batch}

    first = epoch(1)
    assert len({value for sample in first.values() for value in sample}) == 18
    random.random()
    assert epoch(1) == first
    assert not set(epoch(2).values()) & set(first.values())


def test_evaluation_keeps_the_order_of_the_data_set():
    assert [k.sample for k in EpochSampler(5, 0, train=False)] == [0, 1, 2, 3, 4]


def test_processes_share_an_epoch_in_equal_parts(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        parts.append([k.sample for k in EpochSampler(11, 0)])
        assert len(EpochSampler(11, 0, train=False)) == 11
    assert {len(p) for p in parts} == {3}
    assert len(set().union(*parts)) == 9


def test_loading_leaves_the_global_generator_alone_and_workers_change_nothing():
    def loader(workers: int, seed: int = 0) -> SeededLoader:
        return SeededLoader(Patterns(20, "train"), 8, seed, collate, train=True, workers=workers)

    before = torch.get_rng_state()
    alone = list(loader(0))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(alone, loader(1), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.ids, b.ids)
    assert len(alone) == 2  # the incomplete third batch is dropped


def test_a_batch_larger_than_the_data_is_kept_and_evaluation_reads_everything():
    assert len(ids(SeededLoader(Patterns(5, "train"), 8, 0, collate, train=True))) == 5
    assert ids(SeededLoader(Patterns(20, "val"), 8, 0, collate)) == list(range(20))


def load_with_a_worker() -> int:
    return len(list(SeededLoader(Patterns(20, "train"), 8, 0, collate, train=True, workers=1)))


def test_workers_start_within_the_workers_of_joblib():
    """Those leave a start method behind that no loader can use."""
    found = Parallel(n_jobs=2, backend="loky")(delayed(load_with_a_worker)() for _ in range(2))
    assert found == [2, 2]
