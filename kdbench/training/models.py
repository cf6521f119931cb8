"""Models as users bring them: built, their lazy parts given a shape, and what they raise in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdbench.errors import KDBenchError
from kdbench.roles.sources import Ensemble
from kdbench.task import Task


def make(task: Task, architecture: Mapping[str, Any], side: str) -> nn.Module:
    """Builds a model from torch's global generator; lazy modules take their shapes from the task's example.

    Raises:
        KDBenchError: It cannot be built, or is no module.
    """
    with in_one_line(f"the {side}'s {architecture.get('_target_', 'architecture')} cannot be built"):
        model = task.build(architecture)
    if not isinstance(model, nn.Module):
        raise KDBenchError(f"the {side}'s architecture makes a {type(model).__name__}, expected a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        inputs = task.example().inputs
        with in_one_line(f"the {side} {type(model).__name__} fails on an example"), torch.no_grad():
            task.forward(model.eval(), inputs)
        model.train()
    return model


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turns what code of others raises into one line; HYDRA_FULL_ERROR=1 shows where it comes from."""
    try:
        yield
    except KDBenchError:
        raise
    except Exception as error:
        raise KDBenchError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def build_side(task: Task, architecture: Mapping[str, Any], side: str, members: int = 1) -> nn.Module:
    """Builds the network of a side of the pair, or an ensemble of several."""
    made = [make(task, architecture, side) for _ in range(max(1, members))]
    return made[0] if members < 2 else Ensemble(made)
