from __future__ import annotations

import torch
from torch import nn

from kdbench.task import ExportPlan
from kdbench.training.measure import PeakMemory, count_macs, count_params, latency_ms


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
    assert latency_ms(ExportPlan(module, (torch.ones(1, 3),), ("x",)), repeats=7, warmup=2) > 0
    assert runs == [False] * 9
    assert latency_ms(ExportPlan(module, (torch.ones(1, 3),), ("x",)), budget_s=0.0) > 0
    assert len(runs) == 9 + 10


def test_peak_memory_sees_what_the_block_holds():
    with PeakMemory(interval=0.01) as memory:
        before = memory.peak_mb
        block = torch.ones(64 * 2**20 // 4)
        del block
        held = torch.ones(64 * 2**20 // 4)
    assert held.sum() > 0
    assert memory.peak_mb - before > 50
