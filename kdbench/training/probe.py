"""What there is to transfer at a tap, and whether a term can fall without the student."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.features import Feature
from kdbench.task import Batch
from kdbench.training.distiller import Distiller
from kdbench.training.reach import gradients

ROWS = 20_000  # of a feature that are read at most
RIDGE = 1e-4  # of the mean square of the student's channels


def explained(student: Feature, teacher: Feature) -> float | None:
    """Returns the share of the teacher's variance that a linear map of the student's feature explains (R²).

    The map is fitted by ridge regression on the rows of every second sample and judged on those of the others, so that
    neighbours within a sample do not help; of a single sample, on rows drawn at random. It can be below 0.

    Returns:
        At most 1; None where rows do not correspond, or there are too few of them for a fit.
    """
    x, y = (feature.rows().detach().double() for feature in (student, teacher))
    if len(x) != len(y):
        return None
    draw = rng.generator(0, "probe")
    kept = torch.randperm(len(x), generator=draw)[:ROWS].to(x.device)
    sample = student.sample()[kept]
    x, y = x[kept], y[kept]
    fit = sample % 2 == 0
    if fit.all():
        fit = torch.arange(len(x), device=x.device) % 2 == 0
    if fit.sum() <= x.shape[1] or len(x) - fit.sum() < 2:
        return None
    mean_x, mean_y = x[fit].mean(0), y[fit].mean(0)
    inputs, targets = x[fit] - mean_x, y[fit] - mean_y
    square = inputs.T @ inputs
    ridge = RIDGE * square.diagonal().mean().clamp(min=torch.finfo(x.dtype).tiny)
    weight = torch.linalg.solve(
        square + ridge * torch.eye(len(square), dtype=x.dtype, device=x.device), inputs.T @ targets
    )
    rest = y[~fit]
    error = (rest - mean_y - (x[~fit] - mean_x) @ weight).square().sum()
    spread = (rest - rest.mean(0)).square().sum()
    return float(1 - error / spread) if spread > 0 else None


def shares(
    distiller: Distiller, batch: Batch, states: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, float | None]]:
    """Returns :func:`explained` of every feature that student and teacher both give.

    Args:
        distiller: Rehearsed; its student is as before afterwards.
        batch: What is read.
        states: Weights and buffers of the student, by what it is called.

    Returns:
        R² by feature and name of the state.
    """
    model = distiller.cast.model("student")
    before = copy.deepcopy(model.state_dict())
    found: dict[str, dict[str, float | None]] = {}
    for name, state in states.items():
        model.load_state_dict(state)
        with distiller.at_rest(), torch.no_grad():
            signals = distiller.probe(batch)
            student, teacher = (signals.answer(role).features for role in ("student", "teacher"))
            for tap in [name for name in student if name in teacher]:
                found.setdefault(tap, {})[name] = explained(student[tap], teacher[tap])
    model.load_state_dict(before)
    return found


def reached(distiller: Distiller, batch: Batch) -> dict[str, int]:
    """Returns how many of the student's parameters each term reaches."""
    own = {name: p for name, p in distiller.trainable() if name.startswith("student.")}
    with distiller.at_rest(), torch.enable_grad():
        terms = {name: value for found in distiller.every_term(batch).values() for name, value in found.items()}
        found = gradients(terms, own)
    return {term: sum(own[n].numel() for n, norm in norms.items() if norm > 0) for term, norms in found.items()}


def without_student(distiller: Distiller, batch: Batch, steps: int, lr: float = 1e-2) -> dict[str, tuple[float, float]]:
    """Trains what a plugin brings itself, projectors and maps, on one batch with a student that stays as it is.

    A term that falls so can fall without the student. Everything is as before afterwards.

    Returns:
        Value before and after of each term of a plugin that has parameters of its own.
    """
    plugins = [
        (owner, plugin) for owner, plugin in distiller.owned() if any(p.requires_grad for p in plugin.parameters())
    ]
    before = {owner: copy.deepcopy(plugin.state_dict()) for owner, plugin in plugins}
    parameters = [p for _, plugin in plugins for p in plugin.parameters() if p.requires_grad]
    if not parameters:
        return {}
    optimizer = torch.optim.Adam(parameters, lr)
    values: list[dict[str, float]] = []
    with distiller.at_rest(), torch.enable_grad():
        for _, plugin in plugins:
            plugin.train()
        for _ in range(steps + 1):
            every = distiller.every_term(batch)
            terms = {name: value for owner, _ in plugins for name, value in every[owner].items()}
            values.append({name: float(value.detach()) for name, value in terms.items()})
            moving = [value for value in terms.values() if value.requires_grad]
            for parameter, grad in zip(
                parameters,
                torch.autograd.grad(sum(moving, torch.zeros(())), parameters, allow_unused=True),
                strict=True,
            ):
                parameter.grad = grad
            optimizer.step()
    optimizer.zero_grad()
    for owner, plugin in plugins:
        plugin.load_state_dict(before[owner])
    return {name: (values[0][name], values[-1][name]) for name in values[0]}
