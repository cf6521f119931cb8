"""The networks of a training, tried on one real batch before anything trains."""

from __future__ import annotations

import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.roles.sources import Network
from kdbench.task import Batch, move
from kdbench.training.fit import Training
from kdbench.training.models import in_one_line


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
                with in_one_line(what):
                    outputs = task.forward(model.to(device).train(mode), batch.inputs)
                kinds.add(type(outputs))
                if len(kinds) > 1:  # a loss that fails on what the model always gives is the task's own
                    with in_one_line(what):
                        task.loss(model, outputs, batch)
        model.to("cpu").train()
