"""Rehearsal of the gradients: which term reaches whose parameters, found on one batch before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kdbench.errors import KDBenchError
from kdbench.training.plan import StepPlan

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
    hits: dict[tuple[int, str], bool] = {}
    for update in plan.updates:
        params = dict.fromkeys(update.params or (), False)
        for term in update.terms or ():
            mine = params.keys() & found[term].keys()
            # Updates of one group share a forward and a step: the term is of either.
            hits[update.group, term] = bool(mine) or hits.get((update.group, term), False)
            params.update(dict.fromkeys(mine, True))
        trained |= {name: hit or trained.get(name, False) for name, hit in params.items()}
    lost = next((term for (_, term), hit in hits.items() if not hit and term.split(".")[0] != "task"), None)
    if lost is not None:
        raise KDBenchError(f"term {lost!r} reaches no trainable parameter of its update: is a tensor detached?")
    idle = [name for name, hit in trained.items() if not hit and name.split(".")[0] in owners]
    if idle:
        raise KDBenchError(
            f"no term reaches the trainable parameter {idle[0]} ({len(idle)} such): use it in a term, "
            "make it a buffer, or leave it out of this stage (Stage.trains)"
        )
