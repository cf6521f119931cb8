"""Weights in files: safetensors, or a torch file that holds tensors alone. Nothing is ever unpickled."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.errors import KDBenchError


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the state dict of ``model`` under its plain names, whole or not at all."""
    state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_bytes(save(state))
    aside.replace(path)


@torch.no_grad()
def plain(model: nn.Module) -> nn.Module:
    """Returns a copy without parametrisations, whose weights are what the parametrised ones give."""
    model = copy.deepcopy(model)
    for module in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        values = {name: getattr(module, name).clone() for name in module.parametrizations}  # type: ignore[union-attr]
        # torch's own removal changes the class, which a copy shares with what it was made of.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a ``.safetensors`` file, or any other as a torch file with ``weights_only=True``.

    A nested ``state_dict`` or ``model`` entry is entered.

    Raises:
        KDBenchError: The file is missing, damaged or holds more than tensors.
    """
    if not path.is_file():
        raise KDBenchError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers fail in many ways
        line = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise KDBenchError(
            f"{path} is not a weights file that can be read without pickle ({line}): convert it to safetensors"
        ) from None
    while isinstance(state, dict) and not any(isinstance(v, Tensor) for v in state.values()):
        inner = next((state[k] for k in ("state_dict", "model") if k in state), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise KDBenchError(f"{path} holds no state dict of tensors")
    return state


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads weights into ``model``; names and shapes must agree.

    Raises:
        KDBenchError: The file cannot be read or does not fit; the line names the first difference.
    """
    state, own = read_weights(path), model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            missing = len(own.keys() - state.keys())
            raise KDBenchError(f"{path} lacks {name!r} of {type(model).__name__} ({missing} missing)")
        if state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            raise KDBenchError(f"{path}: {name!r} has shape {found}, {type(model).__name__} expects {expected}")
    extra = state.keys() - own.keys()
    if extra:
        name = type(model).__name__
        raise KDBenchError(f"{path} holds {min(extra)!r}, which {name} does not have ({len(extra)} such)")
    model.load_state_dict(state)
