"""Loading samples in an order that belongs to (seed, epoch), whatever else draws random numbers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kdbench.base import endings, rng
from kdbench.base.collectives import share
from kdbench.errors import KDBenchError
from kdbench.task import Batch

#: Names what is drawn for the views of a pool, in place of the seed of a run.
POOL = rng.derive(0, "replay")


class Key(NamedTuple):
    """What a data set is asked for: an augmented sample is a function of this alone.

    Attributes:
        epoch: With ``seed``, names what is drawn; of a pool of views, which of them.
        sample: Which sample.
        seed: Of the run, or :data:`POOL`.
    """

    epoch: int
    sample: int
    seed: int = 0


class EpochSampler(Sampler[Key]):
    """Yields the keys of an epoch; the trainer calls :meth:`set_epoch`.

    Args:
        size: Samples of the data set.
        seed: Names the order, with the epoch.
        train: Draws a new order for each epoch and, where several processes train together, gives each an equal share;
            else yields every sample in the order of the data set.
    """

    def __init__(self, size: int, seed: int, train: bool = True) -> None:
        self.size = size
        self.seed = seed
        self.train = train
        self.epoch = 0
        self.views: int | None = None  # of a pool, through which the epochs go in turn

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def _share(self) -> tuple[int, int]:
        return share() if self.train else (0, 1)

    def __len__(self) -> int:
        return self.size // self._share()[1]

    def __iter__(self) -> Iterator[Key]:
        rank, world = self._share()
        order = list(range(self.size))
        if self.train:
            order = torch.randperm(self.size, generator=rng.generator(self.seed, "order", self.epoch)).tolist()
        for sample in order[rank::world][: len(self)]:
            yield (
                Key(self.epoch, sample, self.seed) if self.views is None else Key(self.epoch % self.views, sample, POOL)
            )


class Batches(Dataset[Any]):
    """Whole batches of a data set, by the keys of their samples.

    Every sample finds the global generators, from which augmentation libraries draw, at the start of a stream of its
    own; a data set that fetches whole batches is left to its own named streams.

    Args:
        dataset: Indexed by :class:`Key`.
        collate: Makes a batch of samples; None where the data set does.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[Sequence[Any]], Batch] | None) -> None:
        self.dataset = dataset
        self.collate = collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Key) -> Any:
        return self._samples([key])[0]

    def _samples(self, keys: Sequence[Key]) -> list[Any]:
        """Returns samples; the states of the generators are kept once, which costs more than ten seeds."""
        found = []
        with rng.scope(0, "batch", accelerators=False):
            for key in keys:
                rng.seed_global(key.seed, "sample", key.epoch, key.sample)
                found.append(self.dataset[key])
        return found

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        """Fetches a batch; one of a pool says which of its views it is."""
        fetch = getattr(self.dataset, "__getitems__", None)
        found: Any = self._samples(keys) if fetch is None else fetch(keys)
        batch = found if self.collate is None else self.collate(found)
        if keys[0].seed == POOL and isinstance(batch, Batch):
            batch.drawn = keys[0].epoch
        return batch


class SeededLoader(DataLoader):
    """A loader whose data set is indexed by :class:`Key` and whose batches depend on the seed and the epoch alone.

    Args:
        dataset: ``dataset[Key(epoch, sample)]`` is a sample, augmented from a stream that its key names.
        batch_size: Samples of a batch, over all processes that train together.
        seed: Names the order.
        collate: Makes a batch of samples; None for a data set whose ``__getitems__(keys)`` is the batch.
        train: Shuffles, shares each batch out over the processes, and drops an incomplete last one unless it is all.
        workers: Loader processes.

    Raises:
        KDBenchError: The processes cannot share a batch in equal parts.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int,
        collate: Callable[[Sequence[Any]], Batch] | None,
        train: bool = False,
        workers: int = 0,
    ) -> None:
        size = len(dataset)  # type: ignore[arg-type]
        processes = share()[1] if train else 1
        if min(size, batch_size) % processes:
            raise KDBenchError(
                f"data.batch_size: found batches of {min(size, batch_size)} samples for {processes} processes, "
                "expected equal parts: change it or trainer.devices"
            )
        super().__init__(
            Batches(dataset, collate),
            batch_size // processes,
            sampler=EpochSampler(size, seed, train),
            collate_fn=_whole,
            drop_last=train and size >= batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            multiprocessing_context=_start_method() if workers else None,
            # Its own stream: drawing the workers' base seed leaves the global generator alone.
            generator=rng.generator(seed, "loader"),
        )

    def replay(self, views: int) -> None:
        """Gives every sample a pool of ``views`` views, the same for every seed, through which the epochs go."""
        self.sampler.views = views  # type: ignore[attr-defined]

    def pool(self, view: int) -> DataLoader[Batch]:
        """Returns a loader of one view of all samples, in their order.

        Every batch is as large as in training: the last one is filled up with the first samples.
        """
        size, batch = len(self.dataset), min(int(self.batch_size or 1), len(self.dataset))  # type: ignore[arg-type]
        keys = [[Key(view, (i + j) % size, POOL) for j in range(batch)] for i in range(0, size, batch)]
        return DataLoader(
            self.dataset,
            batch_sampler=keys,
            collate_fn=_whole,
            num_workers=self.num_workers,
            worker_init_fn=_start_worker,
            multiprocessing_context=_start_method() if self.num_workers else None,
            generator=rng.generator(view, "pool"),
        )


def _start_method() -> str | None:
    """Returns how loader workers start, where the default one is not Python's own: that of joblib's workers fails."""
    known = multiprocessing.get_all_start_methods()
    return None if multiprocessing.get_start_method(allow_none=True) in (None, *known) else known[0]


def _start_worker(number: int) -> None:
    """Ties a loader worker to its trainer; torch's own handler of SIGTERM stays."""
    endings.follow(os.getppid(), terminates=False)


def _whole(batch: Any) -> Any:
    """Takes the place of a collation where the data set fetched a batch at once; worker processes find it by name."""
    return batch
