"""Attention over all nodes of all steps of a video, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.report import Row
from benchmarks.turns import alternate
from tasks.hoi.models.attention import Across


def attention(
    rounds: int = 5, repeats: int = 5, batch: int = 16, steps: int = 64, nodes: int = 8, width: int = 48
) -> Iterator[Row]:
    """The dot-product form at 512 nodes of 16 videos."""
    generator = torch.Generator().manual_seed(0)
    layer = Across(width, 4)
    values = torch.randn(batch, steps, nodes, width, generator=generator, requires_grad=True)
    mask = torch.rand(batch, steps, nodes, generator=generator) < 0.9

    def step() -> None:
        layer(values, mask).square().mean().backward()

    first, twin = alternate({"attention": step, "twin": step}, rounds, repeats).values()
    detail = f"{batch} videos, width {width}, forward and backward"
    name = f"global attention, {steps * nodes} nodes"
    yield Row.of(name, "ms", first.blocks, twin.over(first), limit=150.0, detail=detail)
