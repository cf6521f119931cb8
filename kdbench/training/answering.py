"""Answers of a trained network to a pool of views, asked for once and stored for every student that is to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kdbench.base.weights import load_weights
from kdbench.data import SeededLoader
from kdbench.errors import KDBenchError
from kdbench.roles.replay import OFFSETS, SAMPLE_IDS, Packed, Rehearsed, mapped
from kdbench.roles.sources import Network
from kdbench.task import Batch, Task, move
from kdbench.training.fit import Training, pick_device
from kdbench.training.layout import channels_last, laid_out
from kdbench.training.models import build_side
from kdbench.training.processes import threads
from kdbench.training.recipe import Replay

GB = 1e9


def needed(packed: Packed, size: int, samples: int, replay: Replay) -> int:
    """Returns the bytes that a feature takes, from how it is stored of one batch.

    Args:
        packed: Of the batch.
        size: Samples of the batch.
        samples: All of them.
        replay: How many views of each, and how precisely.
    """
    held = sum(value.numel() * stored_as(value.dtype, replay.half).itemsize for value in packed.tensors.values())
    return held * samples * replay.views // size


def check_size(features: Mapping[str, int], limit: float, views: int) -> None:
    """Refuses answers that take more than ``limit`` GB.

    Raises:
        KDBenchError: They do; the line says how much, and the way out.
    """
    total = sum(features.values())
    if total > limit * GB:
        largest = max(features, key=features.__getitem__)
        ways = [f"fewer views than {views}"] if views > 1 else []
        ways += ["a method on logits alone"] if largest != "logits" else []
        ways += ["teacher.replay_dtype=float16", f"teacher.replay_limit={total / GB:.1f}"]
        raise KDBenchError(
            f"teacher.replay={views}: the answers take {total / GB:.2f} GB, {features[largest] / GB:.2f} of them "
            f"{largest}, expected at most teacher.replay_limit={limit:g}: {', '.join(ways[:-1])} or {ways[-1]}"
        )


def answer(
    replay: Replay, task: Task, weights: Path, data: SeededLoader, folders: Mapping[str, Path], limit: float
) -> dict[str, dict[str, Any]]:
    """Asks a trained network about every view of every training sample, and stores features of it.

    It answers as it would in training: in batches of that size, in that precision and layout of memory.

    Args:
        replay: Whose answers, and to how many views.
        task: The task on the student's data.
        weights: Of the network.
        data: Loader of the training samples.
        folders: By feature name, where it is stored.
        limit: Most bytes in all, GB.

    Returns:
        By feature name, what its shelf reads it by.
    """
    source, trainer = replay.source, replay.config["trainer"]
    side = source.pair["student"]
    model = build_side(task, side["architecture"], source.side, len(source.starts))
    load_weights(model, weights)
    network = Network(task, model, side.get("taps")).requires_grad_(False).eval()
    if trainer["channels_last"]:
        channels_last(network)
    device = pick_device(trainer["accelerator"])
    precision = _precision(trainer["precision"], device)
    samples = len(data.dataset)  # type: ignore[arg-type]
    shelves: dict[str, Writer] = {}
    with threads(trainer["threads"], 1), torch.no_grad():
        network.to(device, torch.float64 if trainer["precision"] == "64-true" else None)
        for view in range(replay.views):
            left = samples
            for batch in data.pool(view):
                batch = precision.convert_input(move(batch, device))
                batch = laid_out(batch) if trainer["channels_last"] else batch
                with precision.forward_context():  # loading stays out, whose numbers it would draw in its type
                    features = network.answer(batch).features
                packed = {name: Packed.of(features[name], name, len(batch)) for name in folders}
                if not shelves:
                    room = {n: needed(p, len(batch), samples, replay) for n, p in packed.items()}
                    check_size(room, limit, replay.views)
                    shelves = {n: Writer(folders[n], n, p, samples, replay) for n, p in packed.items()}
                count, left = min(len(batch), left), left - len(batch)
                for name, shelf in shelves.items():
                    shelf.put(packed[name], batch.ids, count)
    return {name: shelf.close() for name, shelf in shelves.items()}


def rehearse(training: Training, batch: Batch, limit: float) -> None:
    """Lets networks answer as their stored features will, in a training that is tried.

    Args:
        training: Untrained.
        batch: Its first one.
        limit: Most bytes of answers, GB.

    Raises:
        KDBenchError: The answers are too large, the views of the task's samples do not belong to the pool, or a feature
            does not belong to samples.
    """
    task, cast = training.task, training.cast
    for role, replay in training.recipe.inputs.items():
        if not isinstance(replay, Replay):
            continue
        seeds = training.recipe.seed, training.recipe.seed + 1
        loaders = [task.data(seed).train_dataloader() for seed in seeds]
        drawn = [next(iter(loader.pool(0))).inputs for loader in loaders]
        if not _same(*drawn):
            raise KDBenchError(
                f"teacher.replay: task {task.name} draws other views of one key under another seed: augment from "
                "key.seed and key.epoch alone, or teacher.replay=null"
            )
        network, names = cast.sources[role], training.recipe.reads(task, role)
        assert isinstance(network, Network)
        with torch.no_grad():
            features = network.eval().answer(batch).features
        packed = {name: Packed.of(features[name], name, len(batch)) for name in names}
        samples = len(loaders[0].dataset)
        check_size({n: needed(p, len(batch), samples, replay) for n, p in packed.items()}, limit, replay.views)
        cast.sources = {**cast.sources, role: Rehearsed(role, network, names)}


def _same(first: Any, second: Any) -> bool:
    found, expected = tree_leaves(first), tree_leaves(second)
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if isinstance(a, Tensor))


class Writer:
    """Writes a feature of every sample in every view.

    Args:
        folder: Where.
        name: Of the feature, for errors.
        packed: The feature of a first batch.
        samples: How many there are.
        replay: How many views, and how precisely.
    """

    def __init__(self, folder: Path, name: str, packed: Packed, samples: int, replay: Replay) -> None:
        self.folder, self.name, self.samples, self.replay = folder, name, samples, replay
        self.first = packed
        self.orders = {key: _order(value) for key, value in packed.tensors.items()}
        self.ragged: dict[str, list[Tensor]] = {key: [] for key in packed.tensors}
        self.lengths: list[Tensor] = []
        self.ids: list[Tensor] = []
        self.at = 0
        self.largest, self.error = 0.0, 0.0
        self.files: dict[str, Tensor] = {}
        if packed.owner is None:
            for key, value in packed.tensors.items():
                shape = [samples * replay.views, *(value.shape[axis] for axis in self.orders[key][1:])]
                self.files[key] = self._file(key, shape, value.dtype)

    def put(self, packed: Packed, ids: Tensor, count: int) -> None:
        """Stores the first ``count`` samples of a batch, after those before it."""
        if self.at < self.samples:
            self.ids.append(ids[:count].cpu())
        if packed.owner is not None:
            self.lengths.append(torch.bincount(packed.owner, minlength=len(ids))[:count].cpu())
        for key, value in packed.tensors.items():
            rows = value[:count] if packed.owner is None else value[packed.owner < count]
            stored = self._stored(key, rows.permute(self.orders[key])).cpu()
            if packed.owner is None:
                self.files[key][self.at : self.at + count] = stored
            else:
                self.ragged[key].append(stored)
        self.at += count

    def close(self) -> dict[str, Any]:
        """Writes what is left and returns what a :class:`~kdbench.roles.replay.Shelf` reads it by."""
        ids = torch.cat(self.ids)
        if len(ids.unique()) != len(ids):
            raise KDBenchError("teacher.replay: two training samples have one id: their answers cannot be told apart")
        self._write(SAMPLE_IDS, ids)
        if self.lengths:
            ends = torch.cat(self.lengths).cumsum(0)
            self._write(OFFSETS, torch.cat([ends.new_zeros(1), ends]))
            self.files = {key: self._write(key, torch.cat(parts)) for key, parts in self.ragged.items()}
        return {
            "class": f"{self.first.kind.__module__}.{self.first.kind.__qualname__}",
            "constants": dict(self.first.constants),
            "samples": self.samples,
            "views": self.replay.views,
            "ragged": bool(self.lengths),
            "error": self.error / self.largest if self.error else 0.0,
            "columns": {
                key: {
                    "shape": list(file.shape),
                    "stored": _name(file.dtype),
                    "dtype": _name(self.first.tensors[key].dtype),
                    "order": [self.orders[key].index(axis) for axis in range(len(self.orders[key]))],
                }
                for key, file in self.files.items()
            },
        }

    def _stored(self, key: str, values: Tensor) -> Tensor:
        """Returns values as they are stored, and keeps how much they lose by it."""
        stored = values.to(stored_as(values.dtype, self.replay.half))
        if stored.dtype != values.dtype and values.numel():
            self.largest = max(self.largest, float(values.abs().max()))
            self.error = max(self.error, float((values - stored.to(values.dtype)).abs().max()))
            if not math.isfinite(self.error):
                raise KDBenchError(
                    f"teacher.replay_dtype=float16: {key} of {self.name!r} goes to {self.largest:.3g}, and half "
                    "precision ends at 65504: teacher.replay_dtype=float32"
                )
        return stored

    def _file(self, key: str, shape: list[int], dtype: torch.dtype) -> Tensor:
        return mapped(self.folder / f"{key}.bin", shape, _name(stored_as(dtype, self.replay.half)), create=True)

    def _write(self, key: str, value: Tensor) -> Tensor:
        file = mapped(self.folder / f"{key}.bin", list(value.shape), _name(value.dtype), create=True)
        return file.copy_(value)


def stored_as(dtype: torch.dtype, half: bool) -> torch.dtype:
    """Returns the type in which numbers of a type are stored."""
    return torch.float16 if half and dtype in (torch.float32, torch.float64) else dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _order(value: Tensor) -> list[int]:
    """Returns the axes in the order in which they lie in memory, samples first."""
    strides = value.stride()
    return [0, *sorted(range(1, value.dim()), key=lambda axis: -strides[axis])]


def _precision(name: str, device: torch.device) -> Precision:
    if name == "64-true":
        return DoublePrecision()
    return Precision() if name == "32-true" else MixedPrecision(name, device.type)  # type: ignore[arg-type]
