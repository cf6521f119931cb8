"""Optimizers and schedules by configuration; schedules are written in shares of training, so they fit any length."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from kdbench.base.instantiate import converted, locate
from kdbench.errors import KDBenchError, nearest

#: A part of training, from 0 to 1.
Share = Annotated[float, Field(ge=0, le=1)]

#: A schedule that keeps the learning rate.
CONSTANT: Mapping[str, Any] = {"_target_": "kdbench.optim.constant"}


@dataclass(frozen=True)
class Optimization:
    """How parameters step.

    Attributes:
        optimizer: ``_target_`` and options, of every parameter that has no other.
        scheduler: ``_target_`` and options.
        others: Further optimizers by a glob of the parameters that they step (``peer``, ``student.*.points``); the
            first that covers one has it. One with ``scheduler`` has a schedule of its own.
        clip: Largest gradient norm of an update, or None.
        accumulate: Batches whose gradients are averaged before a step. Of several groups of updates a later one sees
            the step of an earlier one with the last of these batches.
        channels_last: Lays 4-D tensors out channel last, which is faster on CPU and on tensor cores.
        manual: Forces the manual path for a single update (both paths give the same weights).
    """

    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"_target_": "torch.optim.AdamW", "lr": 1e-3})
    scheduler: Mapping[str, Any] = field(default_factory=lambda: CONSTANT)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    clip: float | None = None
    accumulate: int = 1
    channels_last: bool = True
    manual: bool = False


def make_optimizer(spec: Mapping[str, Any], groups: list[dict[str, Any]]) -> Optimizer:
    """Creates ``spec._target_`` over parameter groups with the other keys as its options."""
    made: Optimizer = _create("trainer.optimizer", spec, groups)
    return made


def make_scheduler(spec: Mapping[str, Any], optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Creates ``spec._target_(optimizer, total_steps, **options)``, stepped after every optimizer step."""
    made: LRScheduler = _create("trainer.scheduler", spec, optimizer, total_steps)
    return made


def _create(where: str, spec: Mapping[str, Any], *arguments: Any) -> Any:
    if "_target_" not in spec:
        raise KDBenchError(f"{where}: the key _target_ is missing, e.g. torch.optim.AdamW")
    target = locate(spec["_target_"])
    try:
        known = inspect.signature(target, eval_str=True).parameters
    except NameError:  # a class of somebody else's whose types exist for its type checker alone
        known = inspect.signature(target).parameters
    options = {}
    for name, value in spec.items():
        if name == "_target_":
            continue
        if name not in known:
            raise KDBenchError(f"{where}.{name}: unknown key: {nearest(name, known)}")
        annotation = known[name].annotation if not isinstance(known[name].annotation, str) else inspect.Parameter.empty
        options[name] = converted(f"{where}.{name}", annotation, tuple(value) if isinstance(value, list) else value)
    try:
        return target(*arguments, **options)
    except IndexError:  # AdamW reads betas[1] of whatever it is given
        given = ", ".join(f"{name}={list(value)}" for name, value in options.items() if isinstance(value, tuple))
        raise KDBenchError(f"{where}: too few numbers in {given}") from None
    except (TypeError, ValueError) as error:
        raise KDBenchError(f"{where}: {error}") from None


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    peak: PositiveFloat = 10.0,
    warmup: Share = 0.4,
    final: PositiveFloat = 1e-4,
    momentum: tuple[float, float] = (0.85, 0.95),
) -> LRScheduler:
    """One cycle with cosine sides: from the optimizer's lr to ``peak`` times it, then to ``final`` times it.

    Args:
        optimizer: Its lr is the first one.
        total_steps: Optimizer steps in all.
        peak: Highest over first learning rate.
        warmup: Share of the steps on the rising side.
        final: Last over first learning rate.
        momentum: Lowest (at the peak) and highest momentum or beta1.
    """
    low, high = momentum
    if warmup * (total_steps + 1) == 1.0:
        warmup *= 1.0 + 1e-9  # of a rising side that ends with step 0 torch divides by zero
    return OneCycleLR(
        optimizer,
        max_lr=[peak * g["lr"] for g in optimizer.param_groups],
        total_steps=total_steps + 1,
        pct_start=warmup,
        div_factor=peak,
        final_div_factor=1.0 / final,
        base_momentum=low,
        max_momentum=high,
    )


def cosine(optimizer: Optimizer, total_steps: int, warmup: Share = 0.0, final: NonNegativeFloat = 0.0) -> LRScheduler:
    """Cosine decay to ``final`` times the learning rate after a linear warm-up over a share of the steps."""

    def factor(step: int) -> float:
        done = step / max(1, total_steps)
        if done < warmup:
            return max(done / warmup, 1.0 / max(1, total_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1e-12, 1 - warmup)))

    return LambdaLR(optimizer, factor)


def poly(optimizer: Optimizer, total_steps: int, power: PositiveFloat = 0.9) -> LRScheduler:
    """Falls to nothing as ``(1 - done) ** power`` of the share of training that is done."""
    return LambdaLR(optimizer, lambda step: (1 - min(1.0, step / max(1, total_steps))) ** power)


def steps(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[Share] = (0.625, 0.75, 0.875),
    gamma: NonNegativeFloat = 0.1,
) -> LRScheduler:
    """Multiplies by ``gamma`` at shares of training (150, 180 and 210 of 240 epochs by default)."""
    return LambdaLR(optimizer, lambda step: gamma ** sum(step >= m * total_steps for m in milestones))


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Keeps the learning rate."""
    return LambdaLR(optimizer, lambda step: 1.0)
