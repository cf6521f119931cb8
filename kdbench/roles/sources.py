"""Sources: what can answer for a role. Mostly a network with taps; a teacher can also be a table of stored outputs."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from kdbench.base.weights import read_weights
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature
from kdbench.task import Batch, Task

_TAP = re.compile(r"(?P<path>[\w.\[\]-]+?)(?:@(?P<call>\d+))?(?::(?P<end>input|output))?(?:#(?P<index>\d+))?")
_STEP = re.compile(r"\[(-?\d+)\]|([^.\[\]]+)")


@dataclass(frozen=True)
class Answer:
    """What a source says of a batch: raw outputs (None where it has none) and features by name."""

    batch: Batch
    outputs: Any
    features: Mapping[str, Feature]


class Source(nn.Module):
    """Answers batches for a role."""

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        """Returns outputs and features, with other parameters in place of its own where ``params`` gives them."""
        raise NotImplementedError


@dataclass(frozen=True)
class Tap:
    """A named tensor inside a model: ``path[@call][:input|:output][#index]``, e.g. ``backbone[-1]`` or ``fc:input``.

    ``head@2`` is the second call in a forward of a module that has several (a head shared over a pyramid's levels).
    """

    path: str
    end: str = "output"
    index: int | None = None
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Reads a tap from the pair's configuration."""
        match = _TAP.fullmatch(text)
        if match is None:
            form = "path[@call][:input|:output][#index], e.g. 'backbone[-1]'"
            raise KDBenchError(f"tap {text!r} is not of the form {form}")
        index, call = (None if match[name] is None else int(match[name]) for name in ("index", "call"))
        return cls(match["path"], match["end"] or "output", index, call)

    def arm(self, model: nn.Module, catch: Callable[[Any], None]) -> RemovableHandle:
        """Gives ``catch`` the tensor of every forward from now on, until the handle is removed."""
        module = find_module(model, self.path)
        calls = itertools.count(1)

        def seen(value: Any) -> None:
            if self.call is None or next(calls) == self.call:
                catch(value)

        if self.end == "output":
            return module.register_forward_hook(lambda _m, _a, out: seen(self._pick(out)))
        return module.register_forward_pre_hook(
            lambda _m, args, named: seen((*args, *named.values())[self.index or 0]), with_kwargs=True
        )

    def _pick(self, value: Any) -> Any:
        return value if self.index is None else value[self.index]


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Returns the sub-module at ``path``; ``a.b[-1]`` indexes into a sequence of modules.

    Raises:
        KDBenchError: There is none; the line names the nearest.
    """
    module = model
    for index, name in _STEP.findall(path):
        try:
            module = module[int(index)] if index else module.get_submodule(name)  # type: ignore[index]
        except (AttributeError, IndexError, TypeError, KeyError):
            names = [n for n, _ in model.named_modules() if n]
            plain = re.sub(r"\[(-?\d+)\]", r".\1", path)
            raise KDBenchError(
                f"{type(model).__name__} has no module {path!r} for a tap or part: {nearest(plain, names)}"
            ) from None
    return module


class Network(Source):
    """A model with taps, seen through one call: ``forward(inputs) -> (outputs, {tap: tensor})``.

    Hooks are armed for one forward and removed after it, so nothing outlives the call, and what torch.export sees is
    this same call.

    Args:
        task: Knows how to call the model and what its tensors mean.
        model: The plain model; its names are never changed.
        taps: Tap expressions by feature name.
        reads: Makes what it reads of a batch; None reads it as it is.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        taps: Mapping[str, str] | None = None,
        reads: Callable[[Batch], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.reads = reads
        self.model = model
        self.expressions = dict(taps or {})
        self._taps = {name: Tap.parse(text) for name, text in self.expressions.items()}
        for tap in self._taps.values():
            find_module(model, tap.path)
        self._compiled: Callable[[Any], tuple[Any, dict[str, Any]]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        raise TypeError("copy the model of a Network, not the Network: its taps point into the model")

    def forward(self, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Runs the model once.

        Returns:
            The raw outputs and the tapped tensors by name.
        """
        caught: dict[str, Any] = {}

        def catch(name: str, value: Any) -> None:
            if name in caught:
                path = self._taps[name].path
                raise KDBenchError(f"tap {name!r} ({path}) was reached twice in a forward: tap its parent or {path}@1")
            caught[name] = value

        handles = [tap.arm(self.model, functools.partial(catch, name)) for name, tap in self._taps.items()]
        try:
            outputs = self.task.forward(self.model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        missed = [name for name in self._taps if name not in caught]
        if missed:
            raise KDBenchError(f"tap {missed[0]!r} was not reached in the forward of {type(self.model).__name__}")
        return outputs, caught

    def compiles(self, **options: Any) -> None:
        """Answers by a forward that torch.compile made, taps included; with other parameters it answers as before.

        Hooks then stay armed, since a compiled forward does not see them come and go. Taps of one call of several
        (``path@2``) count calls, which it does not do: such a network stays as it is.

        Args:
            options: Of ``torch.compile``.
        """
        if self._compiled is not None or any(tap.call is not None for tap in self._taps.values()):
            return
        held: dict[str, Any] = {}

        def hold(name: str, value: Any) -> None:
            held[name] = value

        for name, tap in self._taps.items():
            tap.arm(self.model, functools.partial(hold, name))

        def run(inputs: Any) -> tuple[Any, dict[str, Any]]:
            return self.task.forward(self.model, inputs), dict(held)

        compiled = torch.compile(run, **options)

        def fresh(inputs: Any) -> tuple[Any, dict[str, Any]]:
            held.clear()  # of what the model was run on elsewhere
            return compiled(inputs)

        self._compiled = fresh

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        batch = batch if self.reads is None else self.reads(batch)
        if params is None:
            outputs, taps = (self._compiled or self)(batch.inputs)
        else:
            named = {f"model.{name}": value for name, value in params.items()}
            outputs, taps = torch.func.functional_call(self, named, (batch.inputs,))
        return Answer(batch, outputs, self.task.describe(outputs, taps, batch))


class Tapped(nn.Module):
    """A model that answers with one tapped tensor: what a method builds on that works on a feature at inference.

    Args:
        model: The plain model.
        tap: Tap expression.
    """

    def __init__(self, model: nn.Module, tap: str) -> None:
        super().__init__()
        self.model = model
        self.tap = tap
        find_module(model, Tap.parse(tap).path)

    def forward(self, *inputs: Any) -> Tensor:
        """Runs the model as far as it goes and returns the tensor at the tap."""
        caught: list[Tensor] = []
        handle = Tap.parse(self.tap).arm(self.model, caught.append)
        try:
            self.model(*inputs)
        finally:
            handle.remove()
        (value,) = caught
        return value


class Ensemble(nn.Module):
    """Several models of one architecture as one: the mean of their raw outputs, class scores before the link function.

    Args:
        members: The models.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Any) -> Any:
        """Returns the mean of every tensor in the members' outputs."""
        return tree_map(lambda *values: torch.stack(values).mean(0), *(member(*inputs) for member in self.members))


class Table(Source):
    """Stored outputs keyed by sample id.

    Args:
        ids: ``(N,)`` sample ids.
        outputs: ``(N, …)`` stored raw outputs of the samples.
        describe: Turns looked-up outputs into features, e.g. the task's ``describe``.
    """

    ids: Tensor
    outputs: Tensor

    def __init__(
        self, ids: Tensor, outputs: Tensor, describe: Callable[[Any, Mapping[str, Any], Batch], dict[str, Feature]]
    ) -> None:
        super().__init__()
        if ids.dim() != 1 or len(ids) != len(outputs):
            raise KDBenchError(
                f"stored answers have ids of shape {tuple(ids.shape)} and outputs of shape {tuple(outputs.shape)}, "
                "expected (N,) and (N, …)"
            )
        order = ids.argsort()
        self.register_buffer("ids", ids[order])
        self.register_buffer("outputs", outputs[order])
        self.describe = describe

    @classmethod
    def read(cls, path: Path, describe: Callable[[Any, Mapping[str, Any], Batch], dict[str, Feature]]) -> Table:
        """Reads a safetensors file with ``ids`` and ``outputs``.

        Raises:
            KDBenchError: It cannot be read or lacks one of them.
        """
        held = read_weights(path).get("", {})
        absent = [name for name in ("ids", "outputs") if name not in held]
        if absent:
            raise KDBenchError(f"{path} has no {absent[0]!r}: expected stored answers, 'ids' (N,) and 'outputs' (N, …)")
        return cls(held["ids"].long(), held["outputs"], describe)

    def answer(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Answer:
        row = torch.searchsorted(self.ids, batch.ids).clamp(max=len(self.ids) - 1)
        absent = self.ids[row] != batch.ids
        if bool(absent.any()):
            raise KDBenchError(f"the table of stored outputs has no sample {int(batch.ids[absent][0])}")
        outputs = self.outputs[row]
        return Answer(batch, outputs, self.describe(outputs, {}, batch))
