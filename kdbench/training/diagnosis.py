"""What a person looks at when a student does not learn: which term reaches whom, and whether it learns one batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from kdbench.needs import State
from kdbench.signals import Signals, total
from kdbench.task import Batch
from kdbench.training.distiller import Distiller
from kdbench.training.reach import gradients


def reach(distiller: Distiller, batch: Batch) -> dict[str, dict[str, float]]:
    """Returns which term reaches which owner's parameters.

    It takes one forward in eval mode and one backward a term, and changes no state.

    Returns:
        Gradient norm by term and owner (role or plugin); an owner that a term does not reach is absent.
    """
    with distiller.at_rest(), torch.enable_grad():
        terms = {name: value for found in distiller.every_term(batch).values() for name, value in found.items()}
        found = gradients(terms, dict(distiller.trainable()))
    norms: dict[str, dict[str, float]] = {}
    for term, by_parameter in found.items():
        squares: dict[str, float] = {}
        for name, norm in by_parameter.items():
            owner = name.split(".", 1)[0]
            squares[owner] = squares.get(owner, 0.0) + norm**2
        norms[term] = {owner: square**0.5 for owner, square in squares.items()}
    return norms


def overfit(distiller: Distiller, batch: Batch, steps: int, lr: float = 1e-3) -> tuple[float, float]:
    """Trains on one batch alone with Adam: a student that cannot lower its loss there is broken.

    Averages and memories move as they do in training.

    Returns:
        The weighted loss before and after, in train mode.
    """
    distiller.train()
    parameters = [p for _, p in distiller.trainable()]
    optimizer = torch.optim.Adam(parameters, lr)
    losses = []
    for step in range(steps + 2):
        loss, signals = _loss(distiller, batch)
        losses.append(float(loss.detach()))
        if step:  # the first pass fills what is empty where training starts
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        distiller.settle(signals, State(0, step, 0.0))
    return losses[1], losses[-1]


def precisions(distiller: Distiller, batch: Batch, seconds: float = 1.0) -> dict[str, float]:
    """Times forward and backward of a step in float32 and under bf16 autocast, in turn; what trains is as before.

    Args:
        distiller: Rehearsed.
        batch: What is read.
        seconds: About how long to measure.

    Returns:
        Median milliseconds by the name of ``trainer.precision``.
    """
    device = distiller.device.type
    modes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "32-true": nullcontext,
        "bf16-mixed": lambda: torch.autocast(device, torch.bfloat16),
    }
    parameters = [parameter for _, parameter in distiller.trainable()]
    times: dict[str, list[float]] = {name: [] for name in modes}
    with distiller.at_rest(), torch.enable_grad():
        began = time.perf_counter()
        while min(map(len, times.values())) < 3 or time.perf_counter() - began < seconds:
            for name, mode in modes.items():
                start = time.perf_counter()
                with mode():
                    loss, _ = _loss(distiller, batch)
                torch.autograd.grad(loss, parameters, allow_unused=True)
                if device == "cuda":
                    torch.cuda.synchronize()
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _loss(distiller: Distiller, batch: Batch) -> tuple[Tensor, Signals]:
    """Returns the weighted loss of all updates of a step, and the answers behind it."""
    assert distiller.plan is not None
    signals = distiller.probe(batch)
    found = distiller.every_term(batch, signals).values()
    terms = {name: value for of_owner in found for name, value in of_owner.items()}
    weights = {n: c for u in distiller.plan.updates for n, c in (u.terms or {}).items()}
    return total(c * distiller.plan.schedules[n].at(1.0) * terms[n] for n, c in weights.items()), signals
