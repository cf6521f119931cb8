"""Graphs in place of modules: a traced module keeps its names, its attributes and the taps inside of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from kdbench.errors import KDBenchError

aten = torch.ops.aten

DROPOUTS = {aten.dropout.default: nn.Dropout, aten.feature_dropout.default: nn.Dropout2d}
#: Prefix of what belongs to the module in the names of a traced graph.
MODULE = "module"


class Stand(nn.Module):
    """Runs a traced graph in place of a module.

    What is not found here is looked up in that module. The hooks of its inner modules fire with what the graph gives
    for them, so that taps work as before.

    Args:
        module: What it stands for; it shares its weights.
        graph: Returns the module's outputs, and arguments and output of each call of the tapped modules.
        calls: The tapped modules in the order of those calls.
    """

    def __init__(self, module: nn.Module, graph: GraphModule, calls: Sequence[nn.Module]) -> None:
        super().__init__()
        self.hold(module, graph)
        # In a tuple, so that their tensors are not state of this module; last, as then all names are found.
        self._stood = (module, graph, tuple(calls))

    def hold(self, module: nn.Module, graph: GraphModule) -> None:
        """Registers what is the state of this module."""
        raise NotImplementedError

    @property
    def graph(self) -> GraphModule:
        """The graph that runs."""
        return self._stood[1]

    @property
    def calls(self) -> tuple[nn.Module, ...]:
        """The tapped modules, in the order in which they are called."""
        return self._stood[2]

    def forward(self, *inputs: Any) -> Any:
        """Returns what the module would, quantised."""
        outputs, seen = self.graph(*inputs)
        for module, (given, value) in zip(self.calls, seen, strict=True):
            if module._forward_hooks or module._forward_pre_hooks:
                module.forward = lambda *_, value=value: value
                try:
                    module(*given)
                finally:
                    del module.forward
        return outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            stood = self.__dict__.get("_stood")
            if stood is None or name.startswith("__"):
                raise
            return getattr(stood[0], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stand:
        copied = memo[id(self)] = type(self).__new__(type(self))
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # torch's own, of the trees in a graph
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __getitem__(self, index: Any) -> Any:
        return self._stood[0][index]  # type: ignore[index]


class Trained(Stand):
    """A stand-in that trains: it holds the module's own parameters and buffers under their names, and the quantisers.

    Args:
        module: See :class:`Stand`.
        graph: Reads the tensors of ``module``; what it calls beside the modules of that is registered here too.
        calls: See :class:`Stand`.
    """

    def hold(self, module: nn.Module, graph: GraphModule) -> None:
        """Registers the module's own tensors and modules, and what the graph calls beside them."""
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
        for name, child in module.named_children():
            self.add_module(name, child)
        own = {node.target for node in graph.graph.nodes if node.op == "call_module"}
        self.quantisers = nn.ModuleDict({n: graph.get_submodule(n) for n in own if not n.startswith(f"{MODULE}.")})

    @property
    def stands_for(self) -> nn.Module:
        """The module with the weights of today."""
        return self._stood[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Trained:
        """Moves everything; tensors that are not in a module of their own are told to the graph and the module."""
        super()._apply(fn, recurse)
        module, graph, _ = self._stood
        for name, buffer in self.named_buffers(recurse=False):
            module._buffers[name] = buffer
        for name, buffer in [*graph.named_buffers()]:
            owner, _, last = name.rpartition(".")
            graph.get_submodule(owner)._buffers[last] = self._own(name, fn(buffer))
        return self

    def _own(self, name: str, buffer: Tensor) -> Tensor:
        """Returns the tensor of the module that a buffer of the graph is, else the buffer."""
        try:
            return self.stands_for.get_buffer(name.removeprefix(f"{MODULE}."))
        except AttributeError:
            return buffer


class _Recorded(nn.Module):
    """A module that also returns arguments and output of the calls of modules inside of it."""

    def __init__(self, module: nn.Module, tapped: Iterable[nn.Module]) -> None:
        super().__init__()
        self.module = module
        self._tapped = tuple(tapped)
        self.order: list[int] = []

    def forward(self, *inputs: Any) -> Any:
        seen: list[tuple[int, Any]] = []
        handles = [
            module.register_forward_hook(
                lambda _m, args, named, value, index=index: seen.append((index, ((*args, *named.values()), value))),
                with_kwargs=True,
            )
            for index, module in enumerate(self._tapped)
        ]
        try:
            outputs = self.module(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        self.order = [index for index, _ in seen]
        return outputs, [call for _, call in seen]


def trace(
    module: nn.Module, inputs: tuple[Any, ...], axes: Sequence[Iterable[int]], tapped: Iterable[nn.Module]
) -> tuple[GraphModule, list[nn.Module]]:
    """Traces a module in eval mode to a graph of operators that still trains.

    Normalisation and dropout are calls of modules there, the normalisation's own, so that they follow train and eval
    mode. What else differs between the modes is as in eval mode.

    Args:
        module: In eval mode; the graph shares its tensors, under names that begin with ``module.``
        inputs: Tensors, or nested lists of them.
        axes: By input, which axes of its tensors are of any length.
        tapped: Modules inside whose calls are returned too.

    Returns:
        The graph, which returns ``(outputs, [(arguments, output), …])``, and the tapped modules by call.

    Raises:
        KDBenchError: Something in it cannot be traced; the line names it.
    """
    recorded = _Recorded(module, tapped)
    doubled = tuple(tree_map(lambda t, own=own: _two(t, own), value) for value, own in zip(inputs, axes, strict=True))
    any_length = torch.export.Dim.AUTO
    shapes = tuple(
        tree_map(lambda t, own=own: dict.fromkeys(own, any_length), value)
        for value, own in zip(doubled, axes, strict=True)
    )
    try:
        with torch.no_grad():
            recorded(*doubled)
        order = list(recorded.order)
        program = torch.export.export(recorded, doubled, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever tracing meets in somebody's module
        raise KDBenchError(f"{type(module).__name__} cannot be traced: {_reason(error)}") from None
    # Guards would hold every batch to what the traced one was by chance, two samples or more.
    graph = program.module(check_guards=False)
    modules = dict(recorded.named_modules())
    for node in list(graph.graph.nodes):
        if node.target is aten.batch_norm.default and isinstance(node.args[3], Node):
            name = str(node.args[3].target).rpartition(".")[0]
            if isinstance(modules.get(name), _BatchNorm):
                graph.set_submodule(name, modules[name])
                _replace(graph, node, name)
        elif node.target in DROPOUTS:
            name = str(node.name)
            graph.add_submodule(
                name, (nn.Dropout if node.target is aten.dropout.default else nn.Dropout2d)(node.args[1])
            )
            _replace(graph, node, name)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, [recorded._tapped[index] for index in order]


def _replace(graph: GraphModule, node: Node, name: str) -> None:
    """Puts the call of a module in the place of an operator on the same first argument."""
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, (node.args[0],))
    call.meta = node.meta
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _two(value: Any, axes: Iterable[int]) -> Any:
    """Doubles axes of length 1, which would be taken for constants."""
    for axis in axes:
        if value.shape[axis] == 1:
            value = torch.cat([value, value], axis)
    return value


def _reason(error: Exception) -> str:
    """Returns the first lines of an error, which name the operator or the line of code."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said[:2])[:300] or type(error).__name__


def called(model: nn.Module, run: Callable[[], Any]) -> Mapping[str, tuple[Any, ...]]:
    """Returns the arguments of a model, and of the modules inside of it, that are called once in ``run``.

    Those that take something else than tensors are left out: it would be a constant of their graph.
    """
    found: dict[str, list[Any]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _m, args, named: found.setdefault(name, []).append(args if not named else None)

    handles = [m.register_forward_pre_hook(note(name), with_kwargs=True) for name, m in model.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: args[0] for name, args in found.items() if len(args) == 1 and _tensors(args[0])}


def recurrent(module: nn.Module) -> bool:
    """Says whether there are recurrent layers inside, of which a graph would have one step after the other."""
    return any(isinstance(inner, nn.RNNBase) for inner in module.modules())


def traceable(model: nn.Module, reached: Collection[str]) -> Iterator[str]:
    """Yields the outermost modules that are called, by name: a model, else modules directly inside of it.

    Of a model with recurrent layers these are modules without, wherever they are.

    Args:
        model: The model.
        reached: Names of the modules that are called, as :func:`called` returns them.
    """
    deep = recurrent(model)

    def below(name: str, module: nn.Module) -> Iterator[str]:
        if name in reached and not recurrent(module):
            yield name
        elif module is model or deep:
            for own, inner in module.named_children():
                yield from below(f"{name}.{own}".strip("."), inner)

    yield from below("", model)


def _tensors(args: Any) -> bool:
    leaves = tree_leaves(args)
    return bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)


def replaced(model: nn.Module, make: Callable[[Trained], nn.Module]) -> nn.Module:
    """Returns a copy in which other modules take the place of the stand-ins that train, wherever they are."""

    def other(module: nn.Module) -> nn.Module:
        if isinstance(module, Trained):
            return make(module)
        for name, child in module.named_children():
            if (found := other(child)) is not child:
                setattr(module, name, found)
        return module

    return other(copy.deepcopy(model))


def stilled(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Keeps modules of some kinds in eval mode from now on, whatever mode the model is in."""
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(_eval)


def _eval(module: nn.Module, _: Any) -> None:
    module.training = False
