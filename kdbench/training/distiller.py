"""The one LightningModule that trains every task, method, augmentation and quantised student."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdbench.base import rng
from kdbench.base.collectives import average, share
from kdbench.base.onednn import keep_sound
from kdbench.errors import KDBenchError
from kdbench.needs import Artifact, Bindings, Stage, State, Views, by_feature
from kdbench.optim import CONSTANT, Optimization, make_optimizer, make_scheduler
from kdbench.plugin import Plugin, artifacts
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Answer
from kdbench.signals import EVERY, Context, Signals, total
from kdbench.task import Batch, move
from kdbench.training.distributed import average_gradients, check_same, share_buffers
from kdbench.training.layout import channels_last, laid_out
from kdbench.training.plan import StepPlan, Weight, covers, make_plan
from kdbench.training.reach import check_reach, gradients


class Distiller(LightningModule):
    """Trains the roles of a run with the terms and updates of its plugins.

    Roles that train (and moving averages) are registered and so are the plugins: their state is the checkpoint.
    Frozen roles are held outside of it, stay in eval mode and never change. Several processes that train together
    hold the same weights: gradients are averaged before each step (see :mod:`kdbench.training.distributed`).

    It is rehearsed as a fit begins, or before by :meth:`rehearse`. Batches in ``val_data`` are scored after each epoch.

    Args:
        cast: The networks and how they take part.
        plugins: By owner: ``method``, ``augment``, ``quant``.
        bindings: By owner, the feature names of each need; those of the need itself where there is none.
        weights: By owner, the weight of each term; ``task`` is the student's supervised loss. None weighs each by 1.
        optimization: Optimizer, schedule, clipping; by default AdamW at a constant rate.
        seed: Names every random stream.
        stage: Which terms and parameters take part.
        side: The entry of the pair that this training is about.
    """

    def __init__(
        self,
        cast: Cast,
        plugins: Mapping[str, Plugin],
        bindings: Mapping[str, Bindings] = MappingProxyType({}),
        weights: Mapping[str, Mapping[str, Weight]] | None = None,
        optimization: Optimization = Optimization(),
        seed: int = 0,
        stage: Stage = Stage(),
        side: str = "student",
    ) -> None:
        super().__init__()
        self.cast = cast
        self.side = side
        self.weights = weights
        self.optimization = optimization
        self.seed = seed
        self.stage = stage
        self.plugins = nn.ModuleDict(plugins)
        self.roles = nn.ModuleDict({n: cast.model(n) for n, r in cast.roles.items() if r.mode != "frozen"})
        self._order = tuple(plugins)
        self._calls = {owner: by_feature(plugin.needs, bindings.get(owner, {})) for owner, plugin in plugins.items()}
        self._bilevel = any(u.batch == "meta" for p in plugins.values() for u in p.updates())
        self.plan: StepPlan | None = None
        self.val_data: Iterable[Batch] = ()
        self.val_every = 1
        self.validation: dict[str, float] = {}
        self.sums: dict[str, tuple[Tensor | float, int]] = {}
        self.samples = 0
        self._last: tuple[Signals | None, State] = None, State(0, 0, 0.0)
        self._terms: dict[str, frozenset[str]] = {}
        self._named: dict[str, nn.Parameter] = {}
        self.moving: frozenset[str] = frozenset()
        self._members: list[frozenset[int]] = []
        for name, role in cast.roles.items():
            if role.mode != "train":
                cast.sources[name].requires_grad_(False)
        if optimization.channels_last:
            for source in cast.sources.values():
                channels_last(source)
        keep_sound(self.parameters())
        self.train()

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets what is plain at once: Lightning notes every hook's name, and a module's search is ten times dearer."""
        if name in self.__dict__ and not isinstance(value, nn.Module | Tensor):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- set-up -----------------------------------------------------------------------------------------------

    def owned(self) -> Iterator[tuple[str, Plugin]]:
        """Yields plugins by owner in the order in which they were composed."""
        for owner in self._order:
            yield owner, self.plugins[owner]  # type: ignore[misc]

    def rehearse(self, batch: Batch) -> dict[str, Tensor]:
        """Builds the plugins from one real batch, runs every term once and makes the step plan.

        Nothing that trains changes: networks answer in eval mode and no gradient is kept.

        Returns:
            The terms and their values.

        Raises:
            KDBenchError: A tap, need, weight, update or optimizer does not fit, a parameter has two owners, or a
                gradient does not arrive where it should (see :func:`kdbench.training.reach.check_reach`).
        """
        self.build(batch)
        with self.at_rest(), torch.enable_grad():
            signals = self.probe(batch)
            terms = self._collect(signals, self._real(batch)[1])
            self._terms = {owner: frozenset(found) for owner, found in terms.items()}
            self._named = dict(self.trainable())
            weights = self.weights
            if weights is None:
                weights = {owner: dict.fromkeys(found, 1.0) for owner, found in terms.items() if owner != "task"}
            self.plan = make_plan(dict(self.owned()), self._terms, weights, self._named, self.stage)
            flat = {name: value for found in terms.values() for name, value in found.items()}
            found = gradients(flat, self._named)
            check_reach(self.plan, found, [owner for owner, _ in self.owned()])
            self.moving = frozenset(term for term, norms in found.items() if any(norms.values()))
            self._optimizers(1)
        whole = len(self.plan.updates[0].params or ()) == len(self._named)
        own = self.optimization.others or self.optimization.manual
        self.automatic_optimization = self.plan.single and whole and not own
        return {name: value.detach() for name, value in flat.items()}

    def build(self, batch: Batch) -> None:
        """Builds the plugins in their order; each sees the views of those before it."""
        with self.at_rest(), torch.no_grad():
            batches, context = self._real(batch)
            views = self._first_views(batches)
            for owner, plugin in self.owned():
                probe = Signals(self.cast, views, self._calls[owner][0][1])
                with rng.scope(self.seed, "build", owner, self.stage.name):
                    if not plugin.built:
                        plugin.build(probe)
                    plugin.enter(self.stage, probe)
                plugin.built = True
                views = plugin.views(views, context)
        for name in self.roles:  # a plugin may have put another network in a role's place
            self.roles[name] = self.cast.model(name)
        self.train()
        if self.optimization.channels_last:
            channels_last(self.plugins)
        keep_sound(self.parameters())

    def probe(self, batch: Batch) -> Signals:
        """Returns signals of the roles' answers to what they read of one batch; ask them within :meth:`at_rest`."""
        batches, context = self._real(batch)
        return Signals(self.cast, self._views(batches, context))

    def every_term(self, batch: Batch, signals: Signals | None = None) -> dict[str, dict[str, Tensor]]:
        """Returns every term on one real batch, by owner, from ``signals`` of :meth:`probe` where they are given."""
        return self._collect(signals or self.probe(batch), self._real(batch)[1])

    def _real(self, batch: Batch) -> tuple[dict[str, Batch], Context]:
        """Returns one batch as the rehearsal reads it, everything on the device of this module."""
        for source in self.cast.sources.values():
            source.to(self.device)
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        if next(self.parameters()).dtype == torch.float64:  # after a stage in double precision
            batch = DoublePrecision().convert_input(batch)
        return {"main": batch, "train": batch, "meta": batch}, self._context(State(0, 0, 0.0), EVERY)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Puts everything into eval mode for a block; random streams and counts are as before after it."""
        modes = [(m, m.training) for s in (*self.cast.sources.values(), self.plugins) for m in s.modules()]
        passes, tokens = dict(self.cast.passes), dict(self.cast.tokens)
        for module, _ in modes:
            module.training = False
        try:
            with rng.scope(self.seed, "rehearsal"):
                yield
        finally:
            self.cast.passes, self.cast.tokens = passes, tokens
            for module, mode in modes:
                module.training = mode

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields every trainable parameter once as ``owner.path``.

        Raises:
            KDBenchError: Two owners hold the same parameter.
        """
        owners: dict[str, nn.Module] = {n: self.cast.model(n) for n, r in self.cast.roles.items() if r.mode == "train"}
        seen: dict[int, str] = {}
        for owner, module in (*owners.items(), *self.owned()):
            for path, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                name = f"{owner}.{path}"
                if id(parameter) in seen:
                    raise KDBenchError(f"{name} and {seen[id(parameter)]} are one parameter: it must have one owner")
                seen[id(parameter)] = name
                yield name, parameter

    def setup(self, stage: str) -> None:
        """Rehearses on a batch of the trainer's own loader, where nobody has."""
        if self.plan is None:
            self.trainer.fit_loop.setup_data()
            loaders: Any = self.trainer.train_dataloader
            with rng.scope(self.seed, "rehearsal"):
                self.rehearse(next(iter(loaders["train"] if isinstance(loaders, Mapping) else loaders)))
            given = {"clip": self.trainer.gradient_clip_val, "accumulate": self.trainer.accumulate_grad_batches != 1}
            wrong = next((name for name, value in given.items() if value), None)
            if wrong and not self.automatic_optimization:
                raise KDBenchError(f"several updates a step take Optimization({wrong}=…), not the Trainer's")

    def configure_optimizers(self) -> Any:
        """Makes one optimizer for each set of parameters that always step together."""
        batches = int(self.trainer.estimated_stepping_batches)
        if not self.automatic_optimization:  # else Lightning knows that several share a step
            epochs = max(1, int(self.trainer.max_epochs or 1))
            batches = epochs * -(-(batches // epochs) // self.optimization.accumulate)
        return self._optimizers(batches)

    def _optimizers(self, batches: int) -> list[Any]:
        assert self.plan is not None, "rehearse() comes first"
        sets: dict[tuple[frozenset[int], str], dict[str, list[nn.Parameter]]] = {}
        for name, parameter in self._named.items():
            members = frozenset(i for i, u in enumerate(self.plan.updates) if name in (u.params or ()))
            if not members:
                continue
            other = next((glob for glob in self.optimization.others if covers([glob], name)), "")
            sets.setdefault((members, other), {}).setdefault(name.split(".", 1)[0], []).append(parameter)
        configured = []
        self._members = []
        for (members, other), owners in sets.items():
            spec = dict(self.optimization.others.get(other, self.optimization.optimizer))
            own = spec.pop("scheduler", None)
            optimizer = make_optimizer(spec, [{"params": p, "name": o} for o, p in owners.items()])
            for group in optimizer.param_groups:
                group["lr"] *= self.stage.lr
            schedule = own or (CONSTANT if self.stage.constant else self.optimization.scheduler)
            scheduler = make_scheduler(schedule, optimizer, self.plan.steps(members, batches))
            configured.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}})
            self._members.append(members)
        return configured

    # ---- modes and devices ------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Distiller:
        """Sets train mode; frozen roles and moving averages stay in eval."""
        super().train(mode)
        for name, role in self.cast.roles.items():
            self.cast.sources[name].train(mode and role.mode == "train")
        return self

    def on_fit_start(self) -> None:
        """Moves what is not registered to the device, and to double precision where the run has it."""
        check_same(self._named.items())
        self.cast.passes.clear()
        self.cast.tokens.clear()
        dtype = torch.float64 if self.trainer.precision == "64-true" else None
        for source in self.cast.sources.values():
            source.to(self.device, dtype)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves batches and lays image-like inputs out channel last."""
        if isinstance(batch, dict):
            return {name: self.transfer_batch_to_device(b, device, dataloader_idx) for name, b in batch.items()}
        batch = move(batch, device)
        return laid_out(batch) if self.optimization.channels_last else batch

    # ---- the step ---------------------------------------------------------------------------------------------

    def _state(self, batch_idx: int) -> State:
        per_epoch = max(1, int(self.trainer.num_training_batches))
        step = self.trainer.current_epoch * per_epoch + batch_idx
        return State(self.trainer.current_epoch, step, step / (per_epoch * max(1, int(self.trainer.max_epochs or 1))))

    def _context(self, state: State, *wanted: str, lr: float = 0.0, rank: int = 0) -> Context:
        return Context(state, self.seed, frozenset(wanted), lr, rank, self.side)

    def _first_views(self, batches: Mapping[str, Batch]) -> Views:
        return {role: dict(batches) for role in self.cast.roles}

    def _views(self, batches: Mapping[str, Batch], context: Context) -> Views:
        views = self._first_views(batches)
        for _, plugin in self.owned():
            views = plugin.views(views, context)
        return views

    def _collect(self, signals: Signals, context: Context) -> dict[str, dict[str, Tensor]]:
        """Returns the wanted terms by owner; supervised ones belong to ``task``."""
        # Only the plain kernels of attention have a second derivative, which a virtual step takes.
        with sdpa_kernel(SDPBackend.MATH) if self._bilevel else nullcontext():
            terms: dict[str, dict[str, Tensor]] = {"task": {}}
            every = EVERY in context.wanted
            for name, role in self.cast.roles.items():
                term = "task" if name == "student" else f"task.{name}"
                # On data without labels a task may have no supervised term.
                if role.mode == "train" and (every or term in context.wanted) and signals.loss(name):
                    terms["task"][term] = signals.supervised(name)
            for owner, plugin in self.owned():
                if every or self._terms[owner] & context.wanted:
                    place = replace(context, rank=0) if plugin.over_batch else context
                    terms[owner] = {}
                    for end, bindings in self._calls[owner]:
                        terms[owner] |= _terms(plugin, signals.bound(bindings, plugin.over_batch), place, end)
            return terms

    def losses(self, signals: Signals, context: Context, weights: list[dict[str, float]]) -> list[Tensor]:
        """Returns the loss of each update from the weights of its terms, and adds the terms to the epoch's means."""
        found = {k: v for terms in self._collect(signals, context).values() for k, v in terms.items()}
        absent = context.wanted - found.keys()
        if absent:
            raise KDBenchError(
                f"term {min(absent)!r} was there on the first batch but is not at step {context.state.step}"
            )
        wanted = [term for term in found if term in context.wanted]
        for term, mean in zip(wanted, average([found[term].detach() for term in wanted]), strict=True):
            value, count = self.sums.get(term, (0.0, 0))
            self.sums[term] = (value + mean, count + 1)
        return [total(found[t] if w == 1.0 else w * found[t] for t, w in terms.items()) for terms in weights]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Runs the updates of one step: by Lightning for a single one, else group by group."""
        assert self.plan is not None
        batches = batch if isinstance(batch, dict) else {"train": batch}
        state = self._state(batch_idx)
        kept: dict[tuple[str, int], Answer] = {}
        rank, size = share()
        self.samples += size * len(batches["train"])
        signals: Signals | None = None
        loss: Tensor | None = None
        for indices in self.plan.groups(State(state.epoch, self._window(batch_idx), state.progress)):
            weights = {i: self.plan.weights(i, state.progress) for i in indices}
            indices = [i for i in indices if weights[i]]
            if not indices:
                continue
            update = self.plan.updates[indices[0]]
            wanted = frozenset().union(*(weights[i] for i in indices))
            context = self._context(state, *wanted, lr=self.lr(), rank=rank)
            with self._modes(update.modes):
                read = {"main" if name == update.batch else name: b for name, b in batches.items()}
                views = self._views(read, context)
                signals = Signals(self.cast, views, {}, state.step, kept)
                losses = self.losses(signals, context, [weights[i] for i in indices])
            if self.automatic_optimization:
                loss = losses[0]
            else:
                self._step(indices, losses, batch_idx)
        self._last = signals, state
        return loss

    def _window(self, batch_idx: int) -> int:
        """Returns how many windows of batches that share a step were before this batch's."""
        per_epoch, size = max(1, int(self.trainer.num_training_batches)), self.optimization.accumulate
        return self.trainer.current_epoch * -(-per_epoch // size) + batch_idx // size

    def _completes(self, batch_idx: int) -> bool:
        """Says whether this batch is the last of those that share a step."""
        return (batch_idx + 1) % self.optimization.accumulate == 0 or self.trainer.is_last_batch

    def lr(self) -> float:
        """Returns the learning rate of the student (of the first optimizer where the student does not train)."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        return float(next((g for g in groups if g["name"] == "student"), groups[0])["lr"])

    def on_after_backward(self) -> None:
        """Averages the gradients over the processes, before they are clipped; the manual path does so itself."""
        if self.automatic_optimization:
            average_gradients(self._named.values())

    def _step(self, indices: list[int], losses: list[Tensor], batch_idx: int) -> None:
        """Gives each update's parameters its gradient and, with the last batch of a step, steps them together."""
        assert self.plan is not None
        optimizers, schedulers = _listed(self.optimizers()), _listed(self.lr_schedulers())
        stepping = [i for i, members in enumerate(self._members) if not members.isdisjoint(indices)]
        size = self.optimization.accumulate
        for i in stepping if batch_idx % size == 0 else ():
            optimizers[i].zero_grad()
        inputs = [[self._named[p] for p in self.plan.updates[index].params or ()] for index in indices]
        for position, (loss, reached) in enumerate(zip(losses, inputs, strict=True)):
            part = loss if size == 1 else loss / size
            self.manual_backward(part, inputs=reached, retain_graph=position < len(losses) - 1)
        if not self._completes(batch_idx):
            return
        average_gradients(dict.fromkeys(p for reached in inputs for p in reached))
        if self.optimization.clip is not None:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            scale = scaler.get_scale() if scaler is not None else 1.0  # of the gradients, until the optimizer steps
            for reached in inputs:
                nn.utils.clip_grad_norm_(reached, self.optimization.clip * scale)
        for i in stepping:
            optimizers[i].step()
            schedulers[i].step()

    @contextmanager
    def _modes(self, modes: Mapping[str, str]) -> Iterator[None]:
        changed = [(m, m.training) for r in modes for m in self.cast.sources[r].modules()]
        for role, mode in modes.items():
            self.cast.sources[role].train(mode == "train")
        try:
            yield
        finally:
            for module, training in changed:
                module.training = training

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Settles what follows the step, and validates at the end of an epoch."""
        signals, state = self._last
        self._last = None, state  # the graph of a step is not to outlive it
        self.settle(signals, state, self._completes(batch_idx))
        if self._validates():
            self.validate()

    @torch.no_grad()
    def settle(self, signals: Signals | None, state: State, stepped: bool = True) -> None:
        """Moves averages after a step; lets plugins update their banks by the signals of a batch that had any."""
        for name, role in self.cast.roles.items():
            if role.mode == "ema" and stepped:
                follow(self.cast.model(name), self.cast.model("student"), role.decay)
        if signals is not None:
            for owner, plugin in self.owned():
                if self.stage.alone and owner != self.stage.owner:
                    continue
                plugin.after_step(signals.bound(self._calls[owner][0][1], whole=True), state)

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's means."""
        self.sums = {}

    def on_train_epoch_end(self) -> None:
        """Makes the running statistics of all processes those of the first one, which are in the checkpoint."""
        share_buffers(self)

    def term_means(self) -> dict[str, float]:
        """Returns the mean of each term over the steps of this epoch that read it."""
        return {term: float(value) / count for term, (value, count) in self.sums.items()}

    def deployed(self) -> Artifact:
        """Returns the student as it would be deployed now."""
        return artifacts([plugin for _, plugin in self.owned()], self.cast.models())["student"]

    # ---- validation -------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Scores the student as it would be deployed, by what the task evaluates, and keeps the metrics."""
        found, precision = self.deployed(), self.trainer.precision_plugin
        model = found.module
        modes = [(m, m.training) for m in model.modules()]
        moved = (precision.convert_input(self.transfer_batch_to_device(b, self.device, 0)) for b in self.val_data)
        batches = found.reads(moved)
        try:
            with precision.val_step_context():
                self.validation = self.cast.task.evaluate(model.eval(), batches, "val", self.device)
        finally:
            for module, training in modes:
                module.training = training

    def _validates(self) -> bool:
        """Whether this batch is the last one of an epoch that is validated, as the last of all is."""
        done = self.trainer.current_epoch + 1
        last = self.trainer.is_last_batch and bool(self.val_data)
        return last and (done == self.trainer.max_epochs or done % self.val_every == 0)


def _terms(plugin: Plugin, signals: Signals, context: Context, end: str) -> dict[str, Tensor]:
    """Returns the terms of one call of a plugin; those of one feature of several end in its name."""
    if not end:
        return plugin.terms(signals, context)
    wanted = frozenset(t.removesuffix(end) for t in context.wanted if t.endswith(end) or t == EVERY)
    found = plugin.terms(signals, replace(context, wanted=wanted))
    return {f"{name}{end}": value for name, value in found.items()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the parameters of ``average`` towards those of ``model``; buffers are copied."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for held, current in zip(average.buffers(), model.buffers(), strict=True):
        held.copy_(current)
