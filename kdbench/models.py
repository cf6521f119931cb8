"""Models as users bring them: built, their lazy parts given a shape, and tried out before anything trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdbench import rng
from kdbench.errors import KDBenchError
from kdbench.sources import Network
from kdbench.task import Batch, Task, move

if TYPE_CHECKING:
    from kdbench.fit import Training


def make(task: Task, architecture: Mapping[str, Any], side: str) -> nn.Module:
    """Builds a model from torch's global generator; lazy modules take their shapes from the task's example.

    Raises:
        KDBenchError: It cannot be built, or is no module.
    """
    with _one_line(f"the {side}'s {architecture.get('_target_', 'architecture')} cannot be built"):
        model = task.build(architecture)
    if not isinstance(model, nn.Module):
        raise KDBenchError(f"the {side}'s architecture makes a {type(model).__name__}, expected a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        inputs = task.example().inputs
        with _one_line(f"the {side} {type(model).__name__} fails on an example"), torch.no_grad():
            task.forward(model.eval(), inputs)
        model.train()
    return model


def try_out(training: Training, batch: Batch, device: torch.device) -> None:
    """Runs the networks of a training once as it will, those that train in train mode too.

    Running statistics change; the training is one that is made to be tried.

    Raises:
        KDBenchError: One fails, or has nothing to train.
    """
    task, seed, batch = training.task, training.recipe.seed, move(batch, device)
    for name, source in training.cast.sources.items():
        if not isinstance(source, Network):  # stored answers
            continue
        role = training.cast.roles[name]
        model, side = training.cast.model(name), training.recipe.side if role.side == "student" else role.side
        trains = role.mode == "train" and not training.recipe.given
        if trains and not any(parameter.requires_grad for parameter in model.parameters()):
            raise KDBenchError(f"the {side} {type(model).__name__} has no parameter that trains")
        kinds = set()
        for mode in (False, True) if trains else (False,):
            samples = f"{len(batch)} sample{'s' if len(batch) > 1 else ''}"
            what = (
                f"the {side} {type(model).__name__} fails in {'train' if mode else 'eval'} mode on a batch of {samples}"
            )
            with rng.scope(seed, "try", name), torch.no_grad():
                with _one_line(what):
                    outputs = task.forward(model.to(device).train(mode), batch.inputs)
                kinds.add(type(outputs))
                if len(kinds) > 1:  # a loss that fails on what the model always gives is the task's own
                    with _one_line(what):
                        task.loss(model, outputs, batch)
        model.to("cpu").train()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns what code of others raises into one line; HYDRA_FULL_ERROR=1 shows where it comes from."""
    try:
        yield
    except KDBenchError:
        raise
    except Exception as error:
        raise KDBenchError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
