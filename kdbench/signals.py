"""Signals: what the roles of a run say of a batch, asked for lazily by the terms that need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.collectives import average, share
from kdbench.errors import KDBenchError, nearest
from kdbench.features import Feature
from kdbench.needs import Bindings, State, Views
from kdbench.roles.cast import Cast
from kdbench.roles.gathering import whole_batch, whole_feature
from kdbench.roles.sources import Answer, Network, find_module
from kdbench.task import Batch, Task

#: In :attr:`Context.wanted`: every term.
EVERY = "*"

#: A view by its name, or a batch that a plugin made.
View: TypeAlias = str | Batch


class Signals:
    """Answers of every role to every view of one batch, and to batches that arise inside ``terms``.

    A forward runs when it is first asked for and at most once per role and view; answers of fixed roles that carry no
    gradient are kept over the update groups of one step. Wherever a view is named, a batch that the plugin made (what
    the student generated, an adversarial input) may stand in its place.

    Where several processes train together, each asks its networks about its own samples. A plugin is given those, or
    under ``whole`` batches and features of all processes; raw answers and supervised losses are always the own ones.

    Args:
        cast: The networks.
        views: Batches by role and view name.
        bindings: For the plugin that reads it: feature names of each need.
        step: Training step, for the named random streams.
        kept: Answers of fixed roles that earlier groups of this step asked for.
    """

    def __init__(
        self,
        cast: Cast,
        views: Views,
        bindings: Bindings | None = None,
        step: int = 0,
        kept: dict[tuple[str, int], Answer] | None = None,
    ) -> None:
        self.cast = cast
        self.views = views
        self.bindings = bindings or {}
        self.step = step
        self._answers: dict[tuple[str, str], Answer] = {}
        self._losses: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._kept = {} if kept is None else kept
        self._params: dict[str, Mapping[str, Tensor]] = {}
        self._made: dict[int, tuple[str, Batch]] = {}
        self._asked: dict[str, int] = {}
        self.whole = False
        self._batches: dict[tuple[str, str], Batch] = {}
        self._features: dict[tuple[str, str, str], Feature] = {}

    def bound(self, bindings: Bindings, whole: bool = False) -> Signals:
        """Returns the same signals (and the same forwards) under a plugin's own names."""
        other = Signals.__new__(Signals)
        other.__dict__.update(self.__dict__, bindings=bindings, whole=whole)  # several times a step: copy.copy is slow
        return other

    def with_params(self, role: str, params: Mapping[str, Tensor]) -> Signals:
        """Returns signals in which ``role`` answers with other parameters (see :meth:`Context.virtual_step`)."""
        other = self.bound(self.bindings, self.whole)
        other._answers = {key: a for key, a in self._answers.items() if key[0] != role}
        other._features = {key: f for key, f in self._features.items() if key[0] != role}
        other._losses = {}
        other._params = {**self._params, role: params}
        return other

    def batch(self, role: str = "student", view: View = "main") -> Batch:
        """Returns what a role reads in a view; of the whole batch without inputs."""
        name, batch = self._seen(role, view)
        if not self.whole:
            return batch
        if (role, name) not in self._batches:
            self._batches[role, name] = whole_batch(batch)
        return self._batches[role, name]

    def answer(self, role: str, view: View = "main") -> Answer:
        """Returns raw outputs and features of a role for a view: :meth:`ask`, once."""
        name, batch = self._seen(role, view)
        if (role, name) not in self._answers:
            # Fixed weights and the same batch object give the same answer in every group of this step.
            kept, place = self._kept, (role, id(batch))
            fixed = self.cast.roles[role].mode != "train"
            answer = kept[place] if fixed and place in kept else self._run(role, batch, name)
            if fixed and isinstance(view, str) and not any(f.values.requires_grad for f in answer.features.values()):
                kept[place] = answer
            self._answers[role, name] = answer
        return self._answers[role, name]

    def ask(self, role: str, batch: Batch) -> Answer:
        """Runs a role on any batch, also one that was made inside ``terms``, under the rules of the role.

        Its mode and gradient are those that it has for a view, its random stream is named by the step and by how often
        the role was asked before, its passes count, its taps are armed for this forward alone. Nothing is kept: asking
        again runs again. ``feature``, ``pair``, ``loss`` and ``supervised`` take such a batch for ``view``, and keep
        the answer as they do for one.

        Args:
            role: Who answers.
            batch: What it reads.
        """
        self._asked[role] = self._asked.get(role, 0) + 1
        return self._run(role, batch, f"asked {self._asked[role]}")

    def generate(self, role: str, batch: Batch, generator: torch.Generator, **options: Any) -> Batch:
        """Returns a batch that a role writes itself, behind what is given of each sample (capability ``generates``).

        It runs in eval mode and without gradient, whatever the role is, with its weights of this step; each sample
        counts as one pass, and what was written as so many tokens. Any role can then be asked about it.

        Args:
            role: Who writes.
            batch: Whose samples are continued.
            generator: Where it draws from: a stream of :meth:`Context.generator`.
            options: Of the task's op ``generate``, such as ``temperature``.
        """
        model = self.cast.model(role)
        modes = [(module, module.training) for module in model.modules()]
        self.cast.passes[role] = self.cast.passes.get(role, 0) + share()[1] * len(batch)
        model.eval()
        try:
            with torch.no_grad():
                written: Batch = self.cast.task.ops()["generate"](model, batch, generator, **options)
        finally:
            for module, mode in modes:
                module.training = mode
        self.cast.tokens[role] = self.cast.tokens.get(role, 0) + share()[1] * int(written.memo["tokens"])
        return written

    def params(self, role: str = "student") -> Mapping[str, Tensor]:
        """Returns the trainable parameters with which a role answers: its own, or those of the last virtual step."""
        own = self.cast.model(role).named_parameters()
        return self._params.get(role) or {name: p for name, p in own if p.requires_grad}

    def _seen(self, role: str, view: View) -> tuple[str, Batch]:
        """Returns the name of a view and its batch; one that a plugin made is held, so that it is known again."""
        if isinstance(view, Batch):
            return self._made.setdefault(id(view), (f"made {len(self._made) + 1}", view))
        if view not in self.views[role]:
            raise KDBenchError(f"role {role!r} has no view {view!r}: {nearest(view, self.views[role])}")
        return view, self.views[role][view]

    def _run(self, role: str, batch: Batch, name: str) -> Answer:
        """Runs a role once; ``name`` is that of its random stream (dropout, stochastic depth)."""
        how, source = self.cast.roles[role], self.cast.sources[role]
        fixed = how.mode != "train"
        rank, size = share()
        if isinstance(source, Network):
            self.cast.passes[role] = self.cast.passes.get(role, 0) + size * len(batch)
        if source.training or not fixed:
            rng.seed_global(self.cast.seed, "forward", role, name, self.step, *_stream(rank))
        grad = torch.is_grad_enabled() and not (fixed and how.grad == "none")
        with torch.set_grad_enabled(grad):
            answer = source.answer(batch, self._params.get(role))
        if size > 1:  # what a plugin draws next is the same in all processes
            rng.seed_global(self.cast.seed, "answered", role, name, self.step)
        return answer

    def feature(self, need: str, role: str, view: View = "main") -> Feature:
        """Returns the feature bound to a need."""
        name = self.bindings.get(need, need)
        if not isinstance(name, str):
            raise KDBenchError(f"need {need!r} is bound to the list {name}: read it with features()")
        return self._pick(name, role, view)

    def features(self, need: str, role: str, view: View = "main") -> list[Feature]:
        """Returns the features bound to a need with ``many``, shallow to deep."""
        names = self.bindings.get(need, [need])
        return [self._pick(name, role, view) for name in ([names] if isinstance(names, str) else names)]

    def _pick(self, name: str, role: str, view: View) -> Feature:
        answer = self.answer(role, view)
        if name not in answer.features:
            raise KDBenchError(f"role {role!r} gives no feature {name!r}: it gives {', '.join(answer.features)}")
        if not self.whole:
            return answer.features[name]
        key = (role, self._seen(role, view)[0], name)
        if key not in self._features:
            with torch.enable_grad():  # kept, so on the graph although it may be asked for without
                self._features[key] = whole_feature(answer.features[name])
        return self._features[key]

    def tap(self, need: str, role: str = "student") -> str:
        """Returns the tap expression of the feature bound to a need, for what a method deploys (see ``Tapped``)."""
        name, source = self.bindings.get(need, need), self.cast.sources[role]
        if not isinstance(name, str) or not isinstance(source, Network) or name not in source.expressions:
            raise KDBenchError(f"need {need!r} of role {role!r} is bound to {name}, which is no single tap")
        return source.expressions[name]

    def pair(self, need: str, view: View = "main", roles: tuple[str, str] = ("student", "teacher")) -> tuple[Any, Any]:
        """Returns the feature bound to a need as two roles give it."""
        return self.feature(need, roles[0], view), self.feature(need, roles[1], view)

    def loss(self, role: str = "student", view: View = "main") -> dict[str, Tensor]:
        """Returns the supervised terms of a role for a view, unweighted."""
        key = (role, self._seen(role, view)[0])
        if key not in self._losses:
            answer = self.answer(role, view)
            task, model, given = self.cast.task, self.cast.model(role), (answer.outputs, answer.batch)
            if role in self._params:
                stepped = {f"model.{name}": value for name, value in self._params[role].items()}
                self._losses[key] = torch.func.functional_call(_Loss(task, model), stepped, given)
            else:
                self._losses[key] = task.loss(model, *given)
        return self._losses[key]

    def supervised(self, role: str = "student", view: View = "main") -> Tensor:
        """Returns the supervised loss of a role for a view: its terms under the task's weights."""
        weights = self.cast.task.loss_weights()
        return total(weights.get(name, 1.0) * value for name, value in self.loss(role, view).items())

    def part(self, name: str, role: str = "teacher") -> nn.Module:
        """Returns a sub-module of a role, by the pair's name for it."""
        paths = self.cast.parts.get(role, {})
        if name not in paths:
            raise KDBenchError(f"the pair names no part {name!r} of its {role}: add parts.{name}=PATH to the pair")
        return find_module(self.cast.model(role), paths[name])


class _Loss(nn.Module):
    """A task's loss as a module, so that it can be called with other parameters of the model."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        return self.task.loss(self.model, outputs, batch)


@dataclass(frozen=True)
class Context:
    """Where training stands, for a plugin's ``views`` and ``terms``.

    Attributes:
        state: Epoch, step and progress.
        seed: The run's seed.
        wanted: Terms with a weight that this group of updates reads; others may be left out.
        lr: Current learning rate of the student.
        rank: Of the process whose own samples a plugin is given; 0 for the whole batch, so that all draw the same.
        side: In whose training this is (:attr:`Plugin.takes_part`); the role ``student`` is who trains there.
    """

    state: State
    seed: int
    wanted: frozenset[str] = frozenset()
    lr: float = 0.0
    rank: int = 0
    side: str = "student"

    def wants(self, term: str) -> bool:
        """Says whether a term is read in this group of updates."""
        return term in self.wanted or EVERY in self.wanted

    def generator(self, *names: str | int) -> torch.Generator:
        """Returns the named random stream of this step."""
        return rng.generator(self.seed, *names, self.state.step, *_stream(self.rank))

    def virtual_step(self, signals: Signals, loss: Tensor, role: str = "student", lr: float | None = None) -> Signals:
        """Takes one gradient step on ``loss`` that itself can be differentiated (bilevel methods).

        Several in a row continue from each other: give the signals of one to the next.

        Args:
            signals: Signals whose role steps, from the parameters with which it answers there.
            loss: Scalar on the graph of the role's parameters.
            role: Who steps.
            lr: Step size; the current learning rate by default.

        Returns:
            Signals in which the role answers with the stepped parameters, second-order graph included.
        """
        params = signals.params(role)
        grads = average(torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True))
        size = self.lr if lr is None else lr
        stepped = {n: p if g is None else p - size * g for (n, p), g in zip(params.items(), grads, strict=True)}
        return signals.with_params(role, stepped)


def _stream(rank: int) -> tuple[str, ...]:
    """Names the streams of a process for its own samples; those of the first one are a single process's."""
    return (f"process {rank}",) if rank else ()


def total(values: Iterable[Tensor]) -> Tensor:
    """Sums scalars; an empty sum is an error because nothing would train."""
    items = list(values)
    if not items:
        raise KDBenchError("there is no term to minimise: the task gives no supervised term and no plugin adds one")
    return sum(items[1:], start=items[0])
