"""Contenders in processes that stay alive together and take turns block by block.

Only the one whose turn it is runs: the others are stopped by a signal, so that no thread of theirs disturbs it. The
order rotates from round to round, and a ratio is taken within a round, so that a slow minute of the machine is in both.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

#: First steps of a block that are not timed: caches and clocks warm up again after the others' turns.
DROPPED = 3


class Gate(Callback):
    """Lets a contender run one block of steps at a time; a loop calls :meth:`step`, Lightning calls the hooks.

    A step lasts from the end of the one before to its own end, so that loading is part of it.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._ends: list[float] = []
        self._block = 1  # the first step warms up and says that this contender is ready

    def step(self) -> None:
        """Marks the end of a step; after the last one of a block, waits for the next turn."""
        self._ends.append(time.perf_counter())
        if len(self._ends) < self._block:
            return
        times = [1000 * (b - a) for a, b in zip(self._ends, self._ends[1:], strict=False)][DROPPED - 1 :]
        self._pipe.send((times, peak_mib()))
        self._block = DROPPED + self._pipe.recv()
        self._ends = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
        self.step()


Contender = Callable[[Gate], None]
"""Runs training steps without end; a module-level function or a partial of one, as it starts in its own process."""


@dataclass
class Times:
    """What a contender took.

    Attributes:
        blocks: Median step of each block, ms.
        peak: Peak memory of its process, MiB.
    """

    blocks: list[float] = field(default_factory=list)
    peak: float = 0.0

    @property
    def median(self) -> float:
        """Median over blocks, ms."""
        return statistics.median(self.blocks)

    def over(self, other: Times) -> list[float]:
        """Returns the ratio to another contender, round by round."""
        return [a / b for a, b in zip(self.blocks, other.blocks, strict=True)]

    def minus(self, other: Times) -> list[float]:
        """Returns the difference to another contender, round by round, ms."""
        return [a - b for a, b in zip(self.blocks, other.blocks, strict=True)]


def take_turns(contenders: Mapping[str, Contender], rounds: int, steps: int) -> dict[str, Times]:
    """Times contenders block by block.

    Args:
        contenders: By name.
        rounds: Blocks of each.
        steps: Timed steps of a block.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes: dict[str, SpawnProcess] = {}
    times = {name: Times() for name in contenders}

    def hear(name: str) -> tuple[list[float], float]:
        try:
            return pipes[name].recv()
        except EOFError:
            raise RuntimeError(f"the contender {name!r} ended; its error is above") from None

    try:
        for name, contender in contenders.items():
            pipes[name], theirs = context.Pipe()
            processes[name] = context.Process(target=_run, args=(contender, theirs), daemon=True)
            processes[name].start()
            theirs.close()
            hear(name)
            _signal(processes[name], signal.SIGSTOP)
        order = list(contenders)
        for index in range(rounds):
            for name in order[index % len(order) :] + order[: index % len(order)]:
                _signal(processes[name], signal.SIGCONT)
                pipes[name].send(steps)
                block, times[name].peak = hear(name)
                _signal(processes[name], signal.SIGSTOP)
                times[name].blocks.append(statistics.median(block))
    finally:
        for process in processes.values():
            process.kill()
    return times


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, Times]:
    """Times short functions of this process in turn; as :func:`take_turns`, with a call for a step."""
    times = {name: Times() for name in functions}
    order = list(functions)
    for index in range(rounds):
        for name in order[index % len(order) :] + order[: index % len(order)]:
            block = []
            for _ in range(DROPPED + repeats):
                start = time.perf_counter()
                functions[name]()
                block.append(1000 * (time.perf_counter() - start))
            times[name].blocks.append(statistics.median(block[DROPPED:]))
    return times


def peak_mib() -> float:
    """Returns the peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _signal(process: SpawnProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


def _run(contender: Contender, pipe: Connection) -> None:
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the driver is gone
        contender(Gate(pipe))
