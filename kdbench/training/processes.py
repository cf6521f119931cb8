"""Several processes for one training: who they are, how they are started, and Lightning's strategy for them.

Lightning would start the whole command again for each process. Here the first process is the run itself, with its
locks, loggers and record, and the others only train beside it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from kdbench.base import endings
from kdbench.errors import KDBenchError

_HERE = "127.0.0.1"
#: How long a process waits for another one, which may be starting or ahead by a validation.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """The place of this process among those of a training.

    Attributes:
        rank: 0 is the run itself.
        size: How many there are.
        port: Of the store through which they meet.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


ALONE = Place()


class _Machine(LightningEnvironment):
    """One machine whose processes are there already."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.place.rank

    def node_rank(self) -> int:
        return 0


class Shared(DDPStrategy):
    """DDP whose module stays as it is: the distiller averages the gradients of what steps.

    DistributedDataParallel's own reducer expects one backward a forward that reaches every parameter; updates with
    parameters of their own, on shared or fresh forwards, are neither.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(cluster_environment=_Machine(place))

    def _configure_launcher(self) -> None:
        self._launcher = None

    def configure_ddp(self) -> None:
        """Leaves the module unwrapped."""


@contextmanager
def group(place: Place, name: str, device: torch.device) -> Iterator[None]:
    """Joins the processes of a training for a block, which ``name`` tells from their other ones."""
    if place.size == 1:
        yield
        return
    store = dist.PrefixStore(name, dist.TCPStore(_HERE, place.port, is_master=False, timeout=_PATIENCE))
    given: dict[str, Any] = {"store": store, "rank": place.rank, "world_size": place.size, "timeout": _PATIENCE}
    if device.type == "cuda":
        torch.cuda.set_device(place.rank)
        dist.init_process_group("nccl", device_id=torch.device("cuda", place.rank), **given)
    else:
        dist.init_process_group("gloo", **given)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def threads(wanted: int | None, size: int) -> Iterator[None]:
    """Sets torch's CPU threads for a block; by default processes share those that one would have."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or max(1, before // size))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- helpers --------------------------------------------------------------------------------------------------------

#: Those of this process, kept for its next training: starting one costs seconds.
_helpers: list[tuple[Any, Connection]] = []


@contextmanager
def helped(size: int, job: Callable[[Place], None]) -> Iterator[Place]:
    """Runs ``job(place)`` in ``size - 1`` other processes during a block; yields the place of this one.

    Args:
        size: Processes, with this one.
        job: Pickled; it takes part in the same groups as the block.

    Raises:
        Exception: What a helper raised; the other helpers are ended, as they are by an error in the block.
    """
    if size == 1:
        yield ALONE
        return
    store = dist.TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    try:
        helpers = _called(size - 1)
        for rank, (_, connection) in enumerate(helpers, 1):
            connection.send((job, Place(rank, size, store.port)))
        yield Place(0, size, store.port)
        for helper in helpers:
            _answer(*helper)
    except BaseException as error:
        try:
            if isinstance(error, RuntimeError):  # perhaps no more than the end of the connection to one that failed
                for process, connection in _helpers:
                    if connection.poll(2):
                        _answer(process, connection)
        finally:
            dismiss()
        raise


def _called(count: int) -> list[tuple[Any, Connection]]:
    context = multiprocessing.get_context("spawn")
    if any(not process.is_alive() for process, _ in _helpers):
        dismiss()
    while len(_helpers) < count:
        here, there = context.Pipe()
        # Not a daemon, because those may not have loader workers; dismissed at the end instead.
        process = context.Process(target=_serve, args=(there, os.getpid()), daemon=False)
        process.start()
        there.close()
        _helpers.append((process, here))
    return _helpers[:count]


@atexit.register
def dismiss() -> None:
    """Ends the helpers of this process."""
    while _helpers:
        process, connection = _helpers.pop()
        connection.close()
        process.kill()
        process.join()


def _answer(process: Any, connection: Connection) -> None:
    try:
        error = connection.recv()
    except (EOFError, OSError):
        process.join(5)
        raise KDBenchError(f"a process of this training ended with exit code {process.exitcode}") from None
    if error is not None:
        raise error


def _serve(connection: Connection, run: int) -> None:
    """Does one job after another until the run, the other end of the connection, is gone."""
    endings.follow(run)
    while True:
        error: BaseException | None = None
        try:
            job, place = connection.recv()
            job(place)
        except EOFError:
            return
        except BaseException as raised:
            error = raised
        with suppress(OSError):
            connection.send(_plain(error))
        if error is not None:
            return


def _plain(error: BaseException | None) -> BaseException | None:
    """Returns an error that can be sent."""
    return (
        error if error is None or isinstance(error, KDBenchError) else RuntimeError(f"{type(error).__name__}: {error}")
    )
