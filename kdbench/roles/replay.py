"""Replay: stored features of a frozen network take its place, for a pool of seeded views of every training sample.

What a feature says of the batch as a whole (which rows count, how much, their true class) is not stored: the task gives
it anew (:meth:`~kdbench.task.Task.mark`). Values are files that the system maps into memory, rows of one sample beside
each other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.base.instantiate import locate
from kdbench.base.store import MANIFEST
from kdbench.errors import KDBenchError
from kdbench.features import Feature, Logits, Values
from kdbench.roles.sources import Answer, Network, Source
from kdbench.task import Batch, Task

#: Fields of class scores and predicted values that belong to the batch and not to the network.
MARKS = ("mask", "weight", "target")
#: Of ragged kinds: the sample of each row.
OWNER = "batch"
SAMPLE_IDS = "ids"
OFFSETS = "offsets"

_OTHER_BATCH = (
    "teacher.replay: the {role} is asked about a batch that a plugin made, and only the views of training samples have "
    "stored answers: teacher.replay=null"
)


@dataclass(frozen=True)
class Packed:
    """A feature of a batch as it is stored.

    Attributes:
        tensors: By field, ``(B, …)``, or ``(M, …)`` where the rows of a sample are not of one number.
        owner: ``(M,)`` sample of each row there, else None.
        constants: The other fields.
        kind: Class of the feature.
    """

    tensors: Mapping[str, Tensor]
    owner: Tensor | None
    constants: Mapping[str, Any]
    kind: type[Feature]

    @classmethod
    def of(cls, feature: Feature, name: str, size: int) -> Packed:
        """Takes a feature apart.

        Args:
            feature: Of a batch.
            name: What it is called.
            size: Samples of the batch.

        Raises:
            KDBenchError: It does not belong to samples one by one.
        """
        marks = MARKS if isinstance(feature, Logits | Values) else ()
        held = {f.name: getattr(feature, f.name) for f in dataclasses.fields(feature) if f.name not in marks}
        tensors = {key: value for key, value in held.items() if isinstance(value, Tensor)}
        constants = {key: value for key, value in held.items() if not isinstance(value, Tensor)}
        owner = tensors.pop(OWNER, None)
        length = size if owner is None else len(owner)
        for key, value in tensors.items():
            if not value.dim() or len(value) != length:
                raise KDBenchError(
                    f"teacher.replay: {key} of {name!r} is {tuple(value.shape)} in a batch of {size}, expected "
                    f"{length} rows that belong to samples: teacher.replay=null"
                )
        return cls(tensors, owner, constants, type(feature))

    def to(self, device: torch.device) -> Packed:
        """Returns it on a device."""
        tensors = {key: value.to(device) for key, value in self.tensors.items()}
        owner = None if self.owner is None else self.owner.to(device)
        return dataclasses.replace(self, tensors=tensors, owner=owner)

    def feature(self, marked: Callable[[Feature], Feature]) -> Feature:
        """Puts the feature together again; ``marked`` gives it what belongs to the batch."""
        owner = {} if self.owner is None else {OWNER: self.owner}
        return marked(self.kind(**self.tensors, **owner, **self.constants))


@dataclass(frozen=True)
class Column:
    """One tensor of a feature, of all samples and views, in a file.

    Attributes:
        stored: ``(rows, …)`` mapped, its axes in the order in which they lie in memory.
        order: Where each axis of the tensor is there; a tensor comes back with the strides that it had.
        dtype: Of the tensor, which ``stored`` may hold in half precision.
    """

    stored: Tensor
    order: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def read(cls, folder: Path, name: str, facts: Mapping[str, Any]) -> Column:
        """Maps the file of a column."""
        stored = mapped(folder / f"{name}.bin", facts["shape"], facts["stored"])
        return cls(stored, tuple(facts["order"]), getattr(torch, facts["dtype"]))

    def rows(self, index: Tensor) -> Tensor:
        """Returns rows of the tensor."""
        return self.stored[index].to(self.dtype).permute(self.order)


class Shelf:
    """A stored feature of every sample in every view of the pool.

    Args:
        folder: Product that holds it.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / MANIFEST).read_text())
        kind = locate(facts["class"])
        if not (isinstance(kind, type) and issubclass(kind, Feature)):
            raise KDBenchError(f"{folder}: {facts['class']} is no kind of feature")
        self.kind: type[Feature] = kind
        self.samples = int(facts["samples"])
        self.error = float(facts["error"])
        self.constants = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["constants"].items()}
        self.columns = {name: Column.read(folder, name, column) for name, column in facts["columns"].items()}
        self.ids, self.places = mapped(folder / f"{SAMPLE_IDS}.bin", [self.samples], "int64").sort()
        self.offsets = None
        if facts["ragged"]:
            self.offsets = mapped(folder / f"{OFFSETS}.bin", [self.samples * int(facts["views"]) + 1], "int64")

    def packed(self, ids: Tensor, view: int) -> Packed:
        """Returns what is stored of samples.

        Args:
            ids: ``(B,)`` which.
            view: In which of the views.

        Raises:
            KDBenchError: A sample is not there.
        """
        found = torch.searchsorted(self.ids, ids).clamp(max=self.samples - 1)
        absent = self.ids[found] != ids
        if bool(absent.any()):
            raise KDBenchError(f"there is no stored answer for the training sample {int(ids[absent][0])}")
        index, owner = self.places[found] + view * self.samples, None
        if self.offsets is not None:
            first, lengths = self.offsets[index], self.offsets[index + 1] - self.offsets[index]
            owner = torch.arange(len(index)).repeat_interleave(lengths)
            start = first - (lengths.cumsum(0) - lengths)
            index = torch.arange(len(owner)) + start[owner]
        return Packed({k: c.rows(index) for k, c in self.columns.items()}, owner, self.constants, self.kind)


class Replayed(Source):
    """A frozen network as the features that it gave before.

    Args:
        role: Who it answers for, for errors.
        shelves: By feature name.
        task: Gives features what belongs to the batch.
    """

    def __init__(self, role: str, shelves: Mapping[str, Shelf], task: Task) -> None:
        super().__init__()
        self.role = role
        self.shelves = dict(shelves)
        self.task = task

    @property
    def error(self) -> float:
        """What half precision lost at most, as a share of the largest value."""
        return max((shelf.error for shelf in self.shelves.values()), default=0.0)

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        if batch.drawn is None:
            raise KDBenchError(_OTHER_BATCH.format(role=self.role))
        ids, features = batch.ids.cpu(), dict[str, Feature]()
        for name, shelf in self.shelves.items():
            packed = shelf.packed(ids, batch.drawn).to(batch.ids.device)
            features[name] = packed.feature(lambda feature: self.task.mark(feature, batch))
        return Answer(batch, None, features)


class Rehearsed(Source):
    """A network that answers as its stored features will, to try a training before there are any.

    Args:
        role: Who it answers for, for errors.
        network: Has the shapes of the one that will be stored.
        names: Features that will be.
    """

    def __init__(self, role: str, network: Network, names: frozenset[str]) -> None:
        super().__init__()
        self.role = role
        self.network = network
        self.names = names

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        if batch.drawn is None:
            raise KDBenchError(_OTHER_BATCH.format(role=self.role))
        given = self.network.answer(batch).features
        task, features = self.network.task, dict[str, Feature]()
        for name in sorted(self.names & given.keys()):
            packed = Packed.of(given[name], name, len(batch))
            features[name] = packed.feature(lambda feature: task.mark(feature, batch))
            for field in dataclasses.fields(features[name]):
                if not _equal(*(getattr(found[name], field.name) for found in (features, given))):
                    raise KDBenchError(
                        f"task {task.name}: describe() gives {name!r} a {field.name} that mark() does not give to its "
                        "stored values: teacher.replay=null"
                    )
        return Answer(batch, None, features)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return first is second or (not isinstance(first, Tensor) and not isinstance(second, Tensor) and first == second)


def mapped(path: Path, shape: list[int], dtype: str, create: bool = False) -> Tensor:
    """Maps a file of numbers into memory.

    Args:
        path: The file.
        shape: Of the tensor.
        dtype: Its name in torch.
        create: Makes the file, to be written through the tensor.
    """
    kind = getattr(torch, dtype)
    size = torch.Size(shape).numel()
    if not create and (not path.is_file() or path.stat().st_size != size * kind.itemsize):
        raise KDBenchError(f"{path}: expected {size} numbers of {dtype}: remove its folder, and it is made again")
    if not size:
        path.touch()
        return torch.empty(shape, dtype=kind)
    return torch.from_file(str(path), shared=create, size=size, dtype=kind).view(shape)
