from __future__ import annotations

import torch
from torch import nn

from kdbench.base.store import Store
from kdbench.task import ExportPlan
from kdbench.training.measure import PeakMemory, count_macs, count_params, latency, latency_once
from kdbench.training.processes import threads


def test_parameters_are_counted_once():
    layer = nn.Linear(3, 4)
    assert count_params(nn.Sequential(layer, layer)) == 16


def test_macs_of_convolution_and_linear():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    plan = ExportPlan(module, (torch.zeros(1, 3, 8, 8),), ("x",))
    assert count_macs(plan) == 8 * 3 * 9 * 16 + 8 * 16 * 10


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_macs_of_attention():
    """Scores and their weighted sum: two products of length x length x channels a head."""
    plan = ExportPlan(Attention(), (torch.zeros(1, 3, 19, 8),), ("x",))
    assert count_macs(plan) == 2 * 3 * 19 * 19 * 8


def test_latency_runs_the_example_in_eval_mode():
    module = nn.BatchNorm1d(3)
    runs: list[bool] = []
    module.register_forward_hook(lambda *_: runs.append(module.training))
    found = latency(ExportPlan(module, (torch.ones(1, 3),), ("x",)), repeats=7, warmup=2)
    assert 0 < found.median_ms <= found.p90_ms
    assert runs == [False] * 9
    assert latency(ExportPlan(module, (torch.ones(1, 3),), ("x",)), budget_s=0.0).median_ms > 0
    assert len(runs) == 9 + 10


def test_a_network_is_timed_once_on_a_machine(tmp_path):
    store, runs = Store(tmp_path), []

    def plan(width, value=0.0):
        layer = nn.Linear(3, width)
        nn.init.constant_(layer.weight, value)
        module = nn.Sequential(layer, nn.ReLU())
        module.register_forward_hook(lambda *_: runs.append(width))
        return ExportPlan(module, (torch.ones(1, 3),), ("x",))

    first = latency_once(plan(4), store)
    once = len(runs)
    assert latency_once(plan(4, value=1.0), store) == first, "its weights do not matter"
    assert len(runs) == once
    latency_once(plan(5), store)
    assert runs[once:] == [5] * once
    with threads(2 if torch.get_num_threads() == 1 else 1, 1):
        latency_once(plan(4), store)
    assert len(runs) == 3 * once


def test_peak_memory_sees_what_the_block_holds():
    with PeakMemory(interval=0.01) as memory:
        before = memory.peak_mb
        block = torch.ones(64 * 2**20 // 4)
        del block
        held = torch.ones(64 * 2**20 // 4)
    assert held.sum() > 0
    assert memory.peak_mb - before > 50
