"""Rehearsal of the gradients: which term reaches whose parameters, found on one batch before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.errors import KDBenchError
from kdbench.plan import StepPlan
from kdbench.plugin import State
from kdbench.signals import total

if TYPE_CHECKING:
    from kdbench.distiller import Distiller
    from kdbench.task import Batch

Gradients = dict[str, dict[str, float]]
"""Gradient norm by term and ``owner.path`` of each parameter that the term reaches."""


def gradients(terms: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> Gradients:
    """Returns the gradient norm of every parameter that each term reaches, by one backward a term.

    No ``grad`` field changes.
    """
    found: Gradients = {}
    for term, value in terms.items():
        found[term] = {}
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
            found[term] = {name: float(g.norm()) for name, g in zip(parameters, grads, strict=True) if g is not None}
    return found


def check_reach(plan: StepPlan, found: Gradients, owners: Iterable[str]) -> None:
    """Checks that what trains can train.

    Args:
        plan: Updates with their terms and parameters.
        found: Of :func:`gradients`.
        owners: Owners of plugins: each of their parameters must be reached by an update that steps it.

    Raises:
        KDBenchError: A term of a plugin reaches no trainable parameter, or no term reaches a parameter of a plugin.
    """
    owners = tuple(owners)
    trained: dict[str, bool] = {}
    for update in plan.updates:
        params = dict.fromkeys(update.params or (), False)
        for term in update.terms or ():
            mine = params.keys() & found[term].keys()
            if not mine and term.split(".")[0] != "task":
                raise KDBenchError(f"term {term!r} reaches no trainable parameter of its update: is a tensor detached?")
            params.update(dict.fromkeys(mine, True))
        trained |= {name: hit or trained.get(name, False) for name, hit in params.items()}
    idle = [name for name, hit in trained.items() if not hit and name.split(".")[0] in owners]
    if idle:
        raise KDBenchError(
            f"no term reaches the trainable parameter {idle[0]} ({len(idle)} such): use it in a term, "
            "make it a buffer, or leave it out of this stage (Stage.trains)"
        )


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
