"""Cost: parameters, multiply-accumulates, latency and peak memory, each by one fixed procedure."""

from __future__ import annotations

import math
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import torch
from filelock import FileLock
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdbench.base.digest import digest
from kdbench.base.memory import give_back
from kdbench.base.store import Store
from kdbench.task import ExportPlan


def count_params(module: nn.Module) -> int:
    """Counts parameters, each once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def count_macs(plan: ExportPlan) -> int:
    """Counts multiply-accumulates of convolutions and matrix products in one forward of the exportable part."""
    plan.module.eval()
    # The counter knows no fused kernel of attention on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        plan.module(*plan.example)
    return int(counter.get_total_flops()) // 2


class Latency(NamedTuple):
    """Time of one forward in ms: median and 90th percentile."""

    median_ms: float
    p90_ms: float


@contextmanager
def alone() -> Iterator[None]:
    """Lets one process of the whole machine time something at a time; other work goes on beside it."""
    lock = FileLock(Path(tempfile.gettempdir()) / "kdbench-latency.lock", mode=0o666)
    try:
        lock.acquire()
    except OSError:  # no folder for all, or a lock of somebody else's
        yield
        return
    try:
        yield
    finally:
        lock.release()


def latency_once(plan: ExportPlan, store: Store) -> Latency:
    """Measures a network on this machine unless that was done: what one network takes is one figure for all its runs.

    Two plans are of one network where module, shapes and types agree, weights aside.

    Args:
        plan: Module and example.
        store: Where the figure is kept.
    """
    shapes = [(name, list(value.shape), str(value.dtype)) for name, value in plan.module.state_dict().items()]
    example = [(list(x.shape), str(x.dtype), x.device.type) for x in plan.example if isinstance(x, torch.Tensor)]
    here = [platform.node(), platform.machine(), str(torch.__version__), torch.get_num_threads()]

    def make(_: Path) -> dict[str, Any]:
        with alone():
            return latency(plan)._asdict()

    found = store.product("latency", digest([repr(plan.module), shapes, example, here]), make).manifest
    return Latency(found["median_ms"], found["p90_ms"])


@torch.no_grad()
def latency(plan: ExportPlan, repeats: int = 30, warmup: int = 5, budget_s: float = 5.0) -> Latency:
    """Measures the time of one forward of the exportable part on its example.

    Args:
        plan: Module and example; the example's device is the one that is measured.
        repeats: Most timed forwards.
        warmup: Forwards before timing.
        budget_s: Timing ends early after this long, with at least 5 forwards.
    """
    plan.module.eval()
    cuda = any(isinstance(x, torch.Tensor) and x.is_cuda for x in plan.example)
    times: list[float] = []
    spent = 0.0
    for index in range(warmup + repeats):
        start = time.perf_counter()
        plan.module(*plan.example)
        if cuda:
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        spent += elapsed
        if index >= warmup:
            times.append(elapsed)
        if spent > budget_s and len(times) >= 5:
            break
    return Latency(1000.0 * statistics.median(times), 1000.0 * sorted(times)[math.ceil(0.9 * len(times)) - 1])


class PeakMemory:
    """Samples the resident memory of this process, loader workers included, over a block.

    Attributes:
        peak_mb: Largest sample in MiB, after the block.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.peak_mb = 0.0
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._process = psutil.Process()

    def _sample(self) -> None:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        self.peak_mb = max(self.peak_mb, total / 2**20)

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._sample()

    def __enter__(self) -> PeakMemory:
        give_back()  # else what an earlier block left free would count
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._sample()
