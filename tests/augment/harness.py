"""An augmentation on batches made by hand, as a task would mix them."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration import config
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.functional.mix import mean_share
from kdbench.needs import State, Views
from kdbench.signals import EVERY, Context
from kdbench.task import Batch
from tasks.mixing import mixed


class Ops:
    """Keeps what it is asked for: the last order and shares, as the task of an augmentation."""

    def mix(self, batch: Batch, order: torch.Tensor, own: torch.Tensor) -> Batch:
        self.order, self.own = order, own
        return mixed(batch, order, own, mean_share(own))


def augmentation(name: str, **options: Any) -> tuple[Any, Ops]:
    """``conf/augment/<name>.yaml`` with other options, and what it asks of a task."""
    content: Any = OmegaConf.to_container(OmegaConf.load(config.folder() / "augment" / f"{name}.yaml"))
    plugin = instantiate("augment", {k: v for k, v in {**content, **options}.items() if k not in ENGINE_KEYS})
    ops = Ops()
    plugin.ops = {"mix": ops.mix}
    return plugin, ops


def images(size: int = 6, shape: tuple[int, ...] = (3, 8, 8)) -> Batch:
    inputs = torch.randn(size, *shape, generator=rng.generator(0, "images", size))
    return Batch(inputs, torch.arange(size), torch.arange(size))


def context(step: int = 7, seed: int = 3) -> Context:
    return Context(State(1, step, 0.5), seed, frozenset({EVERY}))


def read(batch: Batch, *further: str) -> Views:
    """What two roles read of a batch."""
    named = dict.fromkeys(("main", *further), batch)
    return {"student": dict(named), "teacher": dict(named)}
