"""Weights in files: safetensors, or a torch file that holds tensors alone. Nothing is ever unpickled."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.errors import KDBenchError, nearest

#: Counts batches alone: a model without it is the same model.
COUNTER = "num_batches_tracked"
#: Modules that torch wraps around a model or a part of it.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: What a file begins with that is no weights file at all, and what to do.
IMPOSTORS = {
    b"version https://git-lfs": "is a pointer of git-lfs and not the weights: `git lfs pull` fetches them",
    b"<!doctype": "is a web page and not the weights: download the file itself",
    b"<html": "is a web page and not the weights: download the file itself",
}


class _Inert:
    """Stands for an object of a training (options, a NumPy number), which is not made: weights are tensors."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


#: Names in a torch file that are read as nothing.
INERT = [
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "argparse.Namespace"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
]


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the state dict of ``model`` under its plain names, whole or not at all."""
    state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_bytes(save(state))
    aside.replace(path)


@torch.no_grad()
def plain(model: nn.Module) -> nn.Module:
    """Returns a copy without parametrisations, whose weights are what the parametrised ones give.

    A module with the attribute ``stands_for`` (a traced graph that trains in place of it) is replaced by that.
    """
    model = _stood_for(copy.deepcopy(model))
    for module in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        values = {name: getattr(module, name).clone() for name in module.parametrizations}  # type: ignore[union-attr]
        # torch's own removal changes the class, which a copy shares with what it was made of.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    return model


def _stood_for(module: nn.Module) -> nn.Module:
    stood: nn.Module | None = getattr(module, "stands_for", None)
    if stood is not None:
        return stood
    for name, child in module.named_children():
        if (found := _stood_for(child)) is not child:
            setattr(module, name, found)
    return module


def load_plain(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict of plain names into a model; of parametrised weights it is what they are made of."""
    names = {name: name for name in model.state_dict()}
    for prefix, module in model.named_modules():
        for name in getattr(module, "parametrizations", ()) if parametrize.is_parametrized(module) else ():
            path = f"{prefix}." if prefix else ""
            names[f"{path}{name}"] = f"{path}parametrizations.{name}.original"
    model.load_state_dict({names[name]: value for name, value in state.items()}, strict=False)


def read_weights(path: Path) -> dict[str, dict[str, Tensor]]:
    """Reads a safetensors or torch file (``weights_only=True``), whatever its name.

    Returns:
        The mappings in the file that hold tensors, by their dotted place in it; ``""`` is the file itself.

    Raises:
        KDBenchError: The file is missing, damaged or something else, or holds objects that only pickle makes.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except FileNotFoundError:
        raise KDBenchError(f"weights file {path} does not exist") from None
    except OSError as error:
        raise KDBenchError(f"weights file {path} cannot be read: {error.strerror}") from None
    for start, what in IMPOSTORS.items():
        if head.lstrip().lower().startswith(start):
            raise KDBenchError(f"{path} {what}")
    torch_file = head.startswith((b"PK", b"\x80"))
    safe = head[8:9] == b"{" or (path.suffix == ".safetensors" and not torch_file)
    content = _load_safetensors(path) if safe else _load_torch(path)
    found = dict(_state_dicts(content))
    if not found:
        entries = f": it holds {', '.join(map(str, content))[:120]}" if isinstance(content, Mapping) and content else ""
        raise KDBenchError(f"{path} holds no state dict of tensors{entries}")
    return found


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise KDBenchError(
            f"{path} is no whole safetensors file ({_line(error)}): it is damaged or was cut short, fetch it again"
        ) from None


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([(_Inert, n) for n in INERT]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader fail in many ways
        held = re.search(r"GLOBAL (\S+)", str(error))
        if "corrupted" in str(error) or "PytorchStreamReader" in str(error) or isinstance(error, EOFError):
            raise KDBenchError(
                f"{path} is no whole torch file ({_line(error)}): it is damaged or was cut short, fetch it again"
            ) from None
        line = f"it holds {held[1]}" if held else _line(error)
        raise KDBenchError(
            f"{path} is not a weights file that can be read without pickle ({line}): save the model's state_dict() "
            "where you trust the file, best as safetensors"
        ) from None


def _line(error: Exception) -> str:
    """Returns the first line of an error without what colours it in a terminal."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _state_dicts(content: Any, place: str = "", depth: int = 4) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or not depth:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in named.items():
        yield from _state_dicts(value, f"{place}.{name}" if place else name, depth - 1)


@dataclass(frozen=True)
class Fit:
    """One way to read a state dict for a model.

    Attributes:
        place: Of the state dict in the file, with the prefix that its names have before the model's own.
        state: Tensors by the model's names, as far as they are there.
        missing: Names of the model that are not there, counters aside.
        extra: Names that the model does not have.
        shapes: Names whose tensor has another shape or kind of number.
        changes: What was done to read it so.
    """

    place: str
    state: dict[str, Tensor]
    missing: list[str]
    extra: list[str]
    shapes: list[str]
    changes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether it is the model's own state dict."""
        return not (self.missing or self.extra or self.shapes)


def load_weights(model: nn.Module, path: Path, entry: str = "") -> str:
    """Loads weights into ``model``; names and shapes must agree.

    What trainings put around a state dict is seen through where one reading alone fits: entries of the file
    (``state_dict``, ``model``, ``ema``, …), prefixes (``module.``, ``model.``, …), counters of batches that are not
    there.

    Args:
        model: Gets the weights.
        path: The file.
        entry: Which state dict of the file, where several fit: its place or a part of that, e.g. ``ema``.

    Returns:
        What was seen through, empty if nothing.

    Raises:
        KDBenchError: The file cannot be read or does not fit (the line names the first difference), several state dicts
            fit, or a weight is not finite.
    """
    own = model.state_dict()
    fits = [fit for place, state in read_weights(path).items() for fit in _fits(own, place, state)]
    if entry:
        places = sorted({fit.place for fit in fits if fit.place})
        fits = [fit for fit in fits if f".{entry}." in f".{fit.place}."]
        if not fits:
            raise KDBenchError(f"{path} has no entry {entry!r}: {nearest(entry, places)}")
    exact = [fit for fit in fits if fit.exact]
    if not exact:
        raise _difference(model, path, max(fits, key=lambda f: (len(f.state), -len(f.shapes), -len(f.extra))))
    fit = exact[0]
    different = [fit, *(other for other in exact if not _equal(fit.state, other.state))]
    if len(different) > 1:
        places = list(dict.fromkeys(f.place for f in different if f.place))
        raise KDBenchError(
            f"{path} holds several state dicts that fit {type(model).__name__}: {', '.join(places)}: choose one, "
            f"e.g. init_from={path}::{places[-1]}"
        )
    _check_finite(model, path, fit.state)
    model.load_state_dict({**own, **fit.state})
    return ", ".join(fit.changes)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(first[n] is second[n] or torch.equal(first[n], second[n]) for n in first.keys() & second.keys())


def _fits(own: Mapping[str, Tensor], place: str, state: Mapping[str, Tensor]) -> Iterator[Fit]:
    """Yields the readings of one state dict, with wrappers and without, under every prefix of the model's names."""
    wrapped = WRAPPERS - {part for name in own for part in name.split(".")}
    names = {".".join(part for part in name.split(".") if part not in wrapped): name for name in state}
    if len(names) == len(state) and [*names] != [*state]:
        renamed = {name: (old, state[old]) for name, old in names.items()}
        yield from _under_prefixes(own, place, renamed, wrapped)
    yield from _under_prefixes(own, place, {name: (name, tensor) for name, tensor in state.items()}, frozenset())


def _under_prefixes(
    own: Mapping[str, Tensor], place: str, named: Mapping[str, tuple[str, Tensor]], wrapped: frozenset[str]
) -> Iterator[Fit]:
    """Yields readings of tensors that have their name in the file beside them."""
    needed = [name for name in own if not name.endswith(COUNTER)]
    ends = {needed[0], needed[-1]} if needed else set()
    prefixes = {n.removesuffix(end) for n in named for end in ends if f".{n}".endswith(f".{end}")}
    for prefix in sorted(prefixes | {""}):
        inside = {n.removeprefix(prefix): value for n, value in named.items() if n.startswith(prefix)}
        state = {n: inside[n][1] for n in own if n in inside}
        outside = [n for n in named if not n.startswith(prefix)]
        stripped = {part for old, _ in inside.values() for part in wrapped.intersection(old.split("."))}
        stripped |= {prefix.strip(".")} - {""}
        absent = [name for name in own if name not in state]
        changes = {
            f"entry {place!r}": place,
            "names without " + ", ".join(repr(f"{s}.") for s in sorted(stripped)): stripped,
            f"{COUNTER} from 0": absent and all(n.endswith(COUNTER) for n in absent),
            f"left out {', '.join(outside[:3])}{' …' if len(outside) > 3 else ''}": outside,
        }
        yield Fit(
            ".".join(part for part in (place, prefix.strip(".")) if part),
            state,
            [name for name in needed if name not in state],
            [name for name in inside if name not in own and not name.endswith(COUNTER)],
            [
                n
                for n, t in state.items()
                if t.shape != own[n].shape or t.is_floating_point() < own[n].is_floating_point()
            ],
            tuple(change for change, made in changes.items() if made),
        )


def _alike(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and found.is_floating_point() >= expected.is_floating_point()


def _difference(model: nn.Module, path: Path, fit: Fit) -> KDBenchError:
    """Says what is the first thing that does not fit."""
    name, own = type(model).__name__, model.state_dict()
    where = f"{path}::{fit.place}" if fit.place else str(path)
    if fit.shapes:
        first = fit.shapes[0]
        tensor, expected = fit.state[first], own[first]
        if tensor.shape == expected.shape:
            return KDBenchError(f"{where}: {first!r} is of {tensor.dtype}, {name} expects {expected.dtype}")
        # Another width would also show in what the next layer reads.
        if not fit.missing and all(fit.state[n].shape[1:] == own[n].shape[1:] != own[n].shape for n in fit.shapes):
            outputs = f"{len(tensor)} outputs, {name} here has {len(expected)}"
            return KDBenchError(f"{where}: {first.rpartition('.')[0]!r} has {outputs}: it was trained on other classes")
        shapes = f"{tuple(tensor.shape)}, {name} expects {tuple(expected.shape)}"
        return KDBenchError(f"{where}: {first!r} has shape {shapes}")
    if fit.missing:
        found = f"it holds {', '.join(fit.extra[:2])}" if fit.extra else "it holds fewer"
        return KDBenchError(f"{where} lacks {fit.missing[0]!r} of {name} ({len(fit.missing)} missing; {found})")
    extra = min(fit.extra)
    return KDBenchError(f"{where} holds {extra!r}, which {name} does not have ({len(fit.extra)} such)")


def _check_finite(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in state.items():
        bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
        if bad.any():
            raise KDBenchError(
                f"{path}: {name!r} holds {int(bad.sum())} values that are no numbers (NaN or infinite): the training "
                "that wrote it diverged"
            )
