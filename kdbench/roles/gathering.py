"""The whole batch of several processes, for losses that relate rows to each other.

A batch is shared out sample by sample: its sample ``i`` is with process ``i % size``. Without a group of processes all
of this returns what it is given.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kdbench.base.collectives import Gather, share
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Nodes
from kdbench.task import Batch


def whole_feature(feature: Feature) -> Feature:
    """Returns a feature of the whole batch, in the order of a single process and on the graph of every process."""
    if share()[1] == 1:
        return feature
    own = (f.name for f in fields(feature) if f.name not in feature.common)
    tensors = {name: v for name in own if isinstance(v := getattr(feature, name), Tensor)}
    if "batch" in tensors:
        return _ragged(feature, tensors)
    return replace(feature, **{n: _interleaved(v, padded="mask" in tensors) for n, v in tensors.items()})


def whole_batch(batch: Batch) -> Batch:
    """Returns ids, masks and targets of the whole batch; inputs stay with their processes.

    Targets are a tensor or a list with one entry a sample (instances, strings); of another structure they are None.
    """
    if share()[1] == 1:
        return batch
    per_sample = {name: getattr(batch, name) for name in ("ids", "targets", "supervised", "distilled")}
    return batch.with_inputs(None, **{name: _whole(value) for name, value in per_sample.items()})


def _whole(value: Any) -> Any:
    """Returns what every sample of the whole batch has, in the order of a single process."""
    if isinstance(value, Tensor):
        return _interleaved(value)
    if not isinstance(value, list):
        return None
    parts: list[Any] = [None] * share()[1]
    dist.all_gather_object(parts, value)
    return [entry for entries in zip(*parts, strict=True) for entry in entries]


def _interleaved(value: Tensor, padded: bool = False) -> Tensor:
    """Puts the samples of all processes in the order of the whole batch; also where each comes k times, in k blocks.

    Each process may have padded its samples to a length of its own where a mask tells; zeros make them equally long.
    """
    shapes = Gather.apply(torch.tensor(value.shape, device=value.device))
    longest = shapes.amax(0)
    if bool((shapes[:, :1] != longest[:1]).any()) or (not padded and bool((shapes != longest).any())):
        found = ", ".join(str(tuple(shape)) for shape in shapes.tolist())
        raise KDBenchError(
            f"the processes hold features of the shapes {found}, expected one shape: give them a mask, or pad all alike"
        )
    missing = longest - shapes[share()[0]]
    value = F.pad(value, [n for axis in reversed(missing.tolist()) for n in (0, axis)])
    stacked: Tensor = Gather.apply(value)
    return stacked.transpose(0, 1).flatten(0, 1)


def _ragged(feature: Feature, tensors: dict[str, Tensor]) -> Feature:
    """Merges rows that know their sample (points, nodes) and sorts them by it."""
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
    counts = Gather.apply(torch.tensor(len(value), device=value.device)).tolist()
    padded = torch.cat([value, value.new_zeros(max(counts) - len(value), *value.shape[1:])])
    stacked = Gather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(stacked, counts, strict=True)]), counts
