"""What the processes of one training exchange: gradients, normalisers, and the features of losses over a batch.

A batch is shared out sample by sample: its sample ``i`` is with process ``i % size``. Every process has a loss whose
*mean over processes* is that of the whole batch, so gradients are averaged before a step. A loss that is a mean over
equally many rows in every process is that anyway. Any other needs :func:`normalizer`, or the whole batch, from
:func:`whole_feature`. Without a group of processes all of this returns what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits, Nodes, Values
from kdbench.task import Batch


def share() -> tuple[int, int]:
    """Returns the rank of this process in its group and the size of that; ``(0, 1)`` outside of one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _summed(value: Tensor) -> Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value


class _Gather(torch.autograd.Function):
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
        return _Gather.apply(*grads)


class _Mean(torch.autograd.Function):
    """Averages over the processes; it is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value) / share()[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Mean.apply(*grads)


# ---- gradients and normalisers --------------------------------------------------------------------------------------


def average(values: Sequence[Tensor | None]) -> list[Any]:
    """Averages tensors over the processes in one exchange, differentiably; what is None here must be so everywhere."""
    held = [value for value in values if value is not None]
    if share()[1] == 1 or not held:
        return list(values)
    flat: Tensor = _Mean.apply(torch.cat([value.reshape(-1) for value in held]))
    parts = iter(flat.split([value.numel() for value in held]))
    return [None if value is None else next(parts).view(value.shape).to(value.dtype) for value in values]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages the gradients of parameters over the processes, in place.

    Which of them have one must not depend on the data: a term of no rows is a zero on the graph.
    """
    if share()[1] > 1:
        grads = [p.grad for p in parameters if p.grad is not None]
        for grad, mean in zip(grads, average(grads), strict=True):
            grad.copy_(mean)


def normalizer(count: Tensor) -> Tensor:
    """Returns what a sum over this process's rows is divided by, in place of ``count.clamp(min=1)``.

    It is the mean over processes of the count of the whole batch, at least 1: then the mean over processes of the
    quotients is the sum over the whole batch divided by its count. All processes must call it alike.

    Args:
        count: Rows of this process that count, a scalar.
    """
    size = share()[1]
    if size == 1:
        return count.clamp(min=1)
    total = count.detach().double()
    dist.all_reduce(total)
    return (total.clamp(min=1) / size).to(torch.get_default_dtype())


def check_same(parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Checks that all processes hold the same weights.

    Raises:
        KDBenchError: They do not.
    """
    named = dict(parameters)
    if share()[1] == 1 or not named:
        return
    with torch.no_grad():
        sums = _Gather.apply(torch.stack([p.double().sum() for p in named.values()]))
    apart = (sums != sums[:1]).any(0) & sums.isfinite().all(0)
    if bool(apart.any()):
        name = list(named)[int(apart.nonzero()[0])]
        raise KDBenchError(f"{name} starts from other values in each process: it must depend on the seed alone")


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Gives the buffers of ``module`` the values of the first process."""
    if share()[1] > 1:
        for buffer in module.buffers():
            value = buffer.contiguous()
            dist.broadcast(value, 0)
            buffer.copy_(value)


# ---- the whole batch ------------------------------------------------------------------------------------------------


def uneven(feature: Feature) -> bool:
    """Says whether processes may hold different numbers of rows, so that a mean over their own is not that over all."""
    masked = isinstance(feature, Logits | Values) and (feature.mask is not None or feature.weight is not None)
    return masked or hasattr(feature, "batch")


def whole_feature(feature: Feature) -> Feature:
    """Returns a feature of the whole batch, in the order of a single process and on the graph of every process."""
    if share()[1] == 1:
        return feature
    tensors = {f.name: v for f in fields(feature) if isinstance(v := getattr(feature, f.name), Tensor)}
    if "batch" in tensors:
        return _ragged(feature, tensors)
    return replace(feature, **{n: _interleaved(v, padded="mask" in tensors) for n, v in tensors.items()})


def whole_batch(batch: Batch) -> Batch:
    """Returns ids, masks and (where they are a tensor) targets of the whole batch; inputs stay with their processes."""
    if share()[1] == 1:
        return batch
    per_sample = {name: getattr(batch, name) for name in ("ids", "targets", "supervised", "distilled")}
    found = {n: _interleaved(v) if isinstance(v, Tensor) else None for n, v in per_sample.items()}
    return batch.with_inputs(None, **found)


def _interleaved(value: Tensor, padded: bool = False) -> Tensor:
    """Puts the samples of all processes in the order of the whole batch; also where each comes k times, in k blocks.

    Each process may have padded its samples to a length of its own where a mask tells; zeros make them equally long.
    """
    shapes = _Gather.apply(torch.tensor(value.shape, device=value.device))
    longest = shapes.amax(0)
    if bool((shapes[:, :1] != longest[:1]).any()) or (not padded and bool((shapes != longest).any())):
        found = ", ".join(str(tuple(shape)) for shape in shapes.tolist())
        raise KDBenchError(
            f"the processes hold features of the shapes {found}, expected one shape: give them a mask, or pad all alike"
        )
    missing = longest - shapes[share()[0]]
    value = F.pad(value, [n for axis in reversed(missing.tolist()) for n in (0, axis)])
    stacked: Tensor = _Gather.apply(value)
    return stacked.transpose(0, 1).flatten(0, 1)


def _ragged(feature: Feature, tensors: dict[str, Tensor]) -> Feature:
    """Merges rows that know their sample (points, nodes, instances) and sorts them by it."""
    rank, size = share()
    batch, counts = _rows(tensors.pop("batch") * size + rank)
    order = batch.argsort(stable=True)
    edges, edge_values = tensors.pop("edges", None), tensors.pop("edge_values", None)
    changes = {name: _rows(value)[0][order] for name, value in tensors.items()} | {"batch": batch[order]}
    if edges is not None:
        assert isinstance(feature, Nodes)
        place = order.argsort()
        merged = place[_rows((edges + sum(counts[:rank])).T)[0]].T
        by_graph = changes["batch"][merged[0]].argsort(stable=True)
        changes["edges"] = merged[:, by_graph]
        if edge_values is not None:
            changes["edge_values"] = _rows(edge_values)[0][by_graph]
    return replace(feature, **changes)


def _rows(value: Tensor) -> tuple[Tensor, list[int]]:
    """Returns the rows of all processes, one process after another, and how many each has."""
    counts = _Gather.apply(torch.tensor(len(value), device=value.device)).tolist()
    padded = torch.cat([value, value.new_zeros(max(counts) - len(value), *value.shape[1:])])
    stacked = _Gather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(stacked, counts, strict=True)]), counts
