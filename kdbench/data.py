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


class Key(NamedTuple):
    """What a data set is asked for: an augmented sample is a function of the seed and this."""

    epoch: int
    sample: int


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
            yield Key(self.epoch, sample)


class Streams(Dataset[Any]):
    """A data set whose every sample finds the global generators at the start of a stream of its own.

    Augmentation libraries draw from them. A data set that fetches whole batches is left to its own named streams.

    Args:
        dataset: Indexed by :class:`Key`.
        seed: With the key, names the stream.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Key) -> Any:
        with rng.scope(self.seed, "sample", *key, accelerators=False):
            return self.dataset[key]


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
            dataset if hasattr(dataset, "__getitems__") else Streams(dataset, seed),
            batch_size // processes,
            sampler=EpochSampler(size, seed, train),
            collate_fn=collate or _whole,
            drop_last=train and size >= batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            multiprocessing_context=_start_method() if workers else None,
            # Its own stream: drawing the workers' base seed leaves the global generator alone.
            generator=rng.generator(seed, "loader"),
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
