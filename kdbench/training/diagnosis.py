"""What a person looks at when a student does not learn: which term reaches whom, and whether it learns one batch."""

from __future__ import annotations

import torch

from kdbench.needs import State
from kdbench.signals import total
from kdbench.task import Batch
from kdbench.training.distiller import Distiller
from kdbench.training.reach import gradients


def reach(distiller: Distiller, batch: Batch) -> dict[str, dict[str, float]]:
    """Returns which term reaches which owner's parameters.

    It takes one forward in eval mode and one backward a term, and changes no state.

    Returns:
        Gradient norm by term and owner (role or plugin); an owner that a term does not reach is absent.
    """
    with distiller.rehearsal(), torch.enable_grad():
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
    assert distiller.plan is not None
    parameters = [p for _, p in distiller.trainable()]
    optimizer = torch.optim.Adam(parameters, lr)
    losses = []
    for step in range(steps + 2):
        signals = distiller.probe(batch)
        found = distiller.every_term(batch, signals).values()
        terms = {name: value for of_owner in found for name, value in of_owner.items()}
        weights = {n: c for u in distiller.plan.updates for n, c in (u.terms or {}).items()}
        loss = total(c * distiller.plan.schedules[n].at(1.0) * terms[n] for n, c in weights.items())
        losses.append(float(loss.detach()))
        if step:  # the first pass fills what is empty where training starts
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        distiller.settle(signals, State(0, step, 0.0))
    return losses[1], losses[-1]
