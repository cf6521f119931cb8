"""Cost: parameters, multiply-accumulates, latency and peak memory, each by one fixed procedure."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

import psutil
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdbench.base.memory import give_back
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


@torch.no_grad()
def latency_ms(plan: ExportPlan, repeats: int = 30, warmup: int = 5, budget_s: float = 5.0) -> float:
    """Measures the median time of one forward of the exportable part on its example.

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
    return 1000.0 * statistics.median(times)


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
