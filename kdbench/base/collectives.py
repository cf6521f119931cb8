"""What losses need of the other processes of a training: sums, averages, and the number that a mean is divided by.

Without a group of processes all of this returns what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def share() -> tuple[int, int]:
    """Returns the rank of this process in its group and the size of that; ``(0, 1)`` outside of one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _summed(value: Tensor) -> Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value


class Gather(torch.autograd.Function):
    """Stacks what the processes hold. With its adjoint, below, every process gets the gradient of all their losses."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(share()[1])]
        dist.all_gather(parts, value)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Scatter.apply(*grads)


class _Scatter(torch.autograd.Function):
    """Sums over the processes and returns the own part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)[share()[0]].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return Gather.apply(*grads)


class _Mean(torch.autograd.Function):
    """Averages over the processes; it is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value) / share()[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Mean.apply(*grads)


def average(values: Sequence[Tensor | None]) -> list[Any]:
    """Averages tensors over the processes in one exchange, differentiably; what is None here must be so everywhere."""
    held = [value for value in values if value is not None]
    if share()[1] == 1 or not held:
        return list(values)
    flat: Tensor = _Mean.apply(torch.cat([value.reshape(-1) for value in held]))
    parts = iter(flat.split([value.numel() for value in held]))
    return [None if value is None else next(parts).view(value.shape).to(value.dtype) for value in values]


def normalizer(total: Tensor, least: float = 1.0) -> Tensor:
    """Returns what a sum over this process's rows is divided by, in place of ``total.clamp(min=least)``.

    It is the mean over processes of the total of the whole batch, at least ``least``: then the mean over processes of
    the quotients is the sum over the whole batch divided by its total. All processes must call it alike.

    Args:
        total: Rows of this process that count, or the sum of their weights, a scalar.
        least: Smallest total of the whole batch.
    """
    size = share()[1]
    if size == 1:
        return total.clamp(min=least)
    every = total.detach().double()
    dist.all_reduce(every)
    return (every.clamp(min=least) / size).to(total.dtype if total.is_floating_point() else torch.get_default_dtype())
