"""Real methods, from their YAML files: on hand-made logits of any roles, and in trainings of the toy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.instantiate import instantiate
from kdbench.configuration.resolved import ENGINE_KEYS
from kdbench.features import Logits, Values
from kdbench.needs import State
from kdbench.optim import cosine, make_optimizer
from kdbench.roles.cast import Cast
from kdbench.signals import Context, Signals
from kdbench.task import Batch, Task
from kdbench.training.fit import Training
from kdbench.training.layout import channels_last
from tests import toy
from tests.methods.harness import Hand, yaml


class Cut:
    """A built method on hand-made predictions of its roles, which become leaves.

    Args:
        name: As in ``method=``.
        logits: By role.
        options: Override those of the YAML file.
    """

    def __init__(self, name: str, logits: Mapping[str, Logits | Values], **options: Any) -> None:
        spec = {k: v for k, v in yaml(name).items() if k not in ENGINE_KEYS}
        with rng.scope(0, "init", "method"):
            self.method = instantiate("method", spec | options)
            self.leaves = {role: made.values.requires_grad_() for role, made in logits.items()}
            batch = Batch(None, None, torch.arange(len(next(iter(self.leaves.values())))))
            self.cast = Cast(Task(), self.method.roles, {r: Hand({"logits": made}) for r, made in logits.items()})
            self.views = {role: {"main": batch} for role in logits}
            with torch.no_grad():
                self.method.build(self.signals())

    def signals(self) -> Signals:
        return Signals(self.cast, self.views)

    def term(self, name: str) -> Tensor:
        value = self.method.terms(self.signals(), Context(State(0, 0, 0.0), 0, frozenset({name})))[name]
        assert value.shape == ()
        assert value.dtype in (torch.float32, torch.float64)
        assert value.isfinite()
        return value

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Gradients of a term by role, of those that it reaches."""
        grads = torch.autograd.grad(self.term(name), list(self.leaves.values()), allow_unused=True)
        return {role: grad for role, grad in zip(self.leaves, grads, strict=True) if grad is not None}


def training(folder: Path, name: str, options: Mapping[str, Any] | None = None, **trainer: Any) -> Any:
    """A :class:`Training` of the toy by a method of ``conf/method``; untyped, because tests reach into its models."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(toy.recipe("KD", **trainer), plugins=toy.specs(method={**yaml(name), **(options or {})}))
    return Training(recipe, toy.Toy(), {"teacher": toy.teacher_file(folder)})


def online_by_hand(
    trained: Any, losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], shared: bool, epochs: int = 2
) -> tuple[nn.Module, nn.Module]:
    """A student and its peer trained by a plain loop, with cross-entropy and ``losses`` of (student, peer) logits.

    The peer steps first; the student on the same forward (``shared``) or on a fresh one of both.
    """
    nets = {"peer": trained.cast.model("peer"), "student": trained.cast.model("student")}
    loader = trained.data.train_dataloader()
    made = {}
    for name, net in nets.items():
        channels_last(net)
        net.train().requires_grad_()
        optimizer = make_optimizer(toy.SGD, [{"params": list(net.parameters())}])
        made[name] = (optimizer, cosine(optimizer, epochs * len(loader), warmup=0.2))

    def answer(name: str, batch: Batch, step: int) -> Tensor:
        torch.manual_seed(rng.derive(0, "forward", name, "main", step))
        return nets[name](batch.inputs)

    step = 0
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for group in [tuple(nets)] if shared else [(name,) for name in nets]:
                s, p = answer("student", batch, step), answer("peer", batch, step)
                of_student, of_peer = losses(s, p)
                whole = {
                    "student": nn.functional.cross_entropy(s, batch.targets) + of_student,
                    "peer": nn.functional.cross_entropy(p, batch.targets) + of_peer,
                }
                for name in group:
                    made[name][0].zero_grad()
                    whole[name].backward(inputs=list(nets[name].parameters()), retain_graph=True)
                for name in group:
                    for part in made[name]:
                        part.step()
            step += 1
    return nets["student"], nets["peer"]
