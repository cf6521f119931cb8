"""One training from a recipe to a scored model, resumable at every epoch."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn

from kdbench.base import rng
from kdbench.base.memory import keep_freed
from kdbench.base.weights import load_weights, plain, save_weights
from kdbench.errors import KDBenchError
from kdbench.needs import Artifact, Bindings, Role, Stage
from kdbench.optim import Optimization
from kdbench.plugin import Plugin, artifacts
from kdbench.roles.cast import Cast
from kdbench.roles.sources import Ensemble, Network, Source, Table
from kdbench.task import Batch, Task
from kdbench.training.distiller import Distiller
from kdbench.training.history import Diverged, History
from kdbench.training.measure import PeakMemory, count_params
from kdbench.training.models import build_side
from kdbench.training.plan import merge_roles, merge_stages, of_owner
from kdbench.training.processes import Place, Shared, group, helped, threads
from kdbench.training.recipe import BEST, DEPLOYED, MODEL, Answers, Recipe, start_of


class Training:
    """A recipe brought to life: networks, plugins and data, ready to rehearse or to train.

    Args:
        recipe: What to train.
        task: The task.
        products: By role, the weights of the trained networks that the recipe takes as inputs.
        untrained: Lets fresh weights stand in for those that are not there (rehearsal, doctor).
    """

    def __init__(
        self, recipe: Recipe, task: Task, products: Mapping[str, Path] | None = None, untrained: bool = False
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.products = dict(products or {})
        self.seen_through = ""  # in the file of weights that the user gives
        self.pair = recipe.pair
        self.plugins: dict[str, Plugin] = {}
        self.bindings: dict[str, Bindings] = {}
        roles: dict[str, Mapping[str, Role]] = {}
        for owner, spec in recipe.plugins.items():
            with rng.scope(recipe.seed, "init", owner):
                self.plugins[owner] = spec.make()
            absent = recipe.absent(owner)
            self.bindings[owner] = spec.bind(task, self.pair, recipe.plugins, absent)
            roles[owner] = {name: role for name, role in spec.plugin.roles.items() if name not in absent}
        self.cast = Cast(task, merge_roles(roles), {}, seed=recipe.seed, parts={})
        self._fill(untrained)
        self.stages = merge_stages(self.plugins)

    @functools.cached_property
    def data(self) -> LightningDataModule:
        """The loaders; what only builds the networks needs none."""
        return self.task.data(self.recipe.seed)

    def _fill(self, untrained: bool) -> None:
        roles, sources = self.cast.roles, dict[str, Source]()
        for name in sorted(roles, key=lambda n: n != "student"):
            role, side = roles[name], self.pair[roles[name].side]
            given = self.recipe.inputs.get(name)
            if isinstance(given, Answers):
                sources[name] = Table.read(given.path, self.task.describe)
                continue
            model = self._initial(name, role)
            if role.init == "trained":
                if name not in self.products and not untrained:
                    raise KDBenchError(f"role {name!r} starts from a trained {role.side}, and this run has none")
                if name in self.products:
                    load_weights(model, self.products[name])
            elif role.init == "student":
                model.load_state_dict(sources["student"].model.state_dict())  # type: ignore[union-attr]
            whole = isinstance(model, Ensemble) or not self.plugins
            sources[name] = Network(self.task, model, None if whole else side.get("taps"))
        self.cast.sources = sources
        self._plain = frozenset(self.cast.model("student").state_dict())
        self.cast.parts = {name: self.pair[role.side].get("parts") or {} for name, role in roles.items()}

    def _initial(self, name: str, role: Role) -> nn.Module:
        """Builds the model of a role with its initial weights."""
        side = self.recipe.side if role.side == "student" else role.side
        recipe = self.recipe.inputs.get(name, self.recipe) if role.init == "trained" else self.recipe
        assert isinstance(recipe, Recipe)
        ours = name == "student"
        files = recipe.starts if ours or role.init == "trained" else []
        # What a training is about starts from the stream of its own name: a student and its scratch twin are twins.
        with rng.scope(self.recipe.seed, "init", self.recipe.side if ours else name):
            model = build_side(self.task, self.pair[role.side]["architecture"], side, len(files))
        if ours:
            members = model.members if isinstance(model, Ensemble) else [model]
            seen = [load_weights(member, *start_of(file)) for member, file in zip(members, files, strict=False)]
            self.seen_through = ", ".join(dict.fromkeys(filter(None, seen)))
        return model

    def enter(self, stage: Stage) -> None:
        """Gives the roles of a stage their networks, before it is rehearsed or trained."""
        for role, source in stage.roles.items():
            model = copy.deepcopy(self.cast.model(source))
            taps = self.pair[self.cast.roles[source].side].get("taps")
            self.cast.sources = {**self.cast.sources, role: Network(self.task, model, taps)}
        if stage.fresh:
            initial = self._initial("student", self.cast.roles["student"])
            self.cast.model("student").load_state_dict(initial.state_dict())

    def distiller(self, stage: Stage = Stage()) -> Distiller:
        """Returns the module that trains one stage."""
        trainer = self.recipe.trainer
        weights: dict[str, dict[str, Any]] = {}
        optimizers = dict(trainer["optimizers"])
        for owner, spec in self.recipe.plugins.items():
            factor = self.recipe.factor if owner == self.recipe.tuned else 1.0
            weights[owner] = {t: _scaled(w, factor, t) for t, w in spec.weights.items()}
            optimizers |= {of_owner(owner, glob): given for glob, given in spec.optimizers.items()}
        optimization = Optimization(
            optimizer=trainer["optimizer"],
            scheduler=trainer["scheduler"],
            others=optimizers,
            clip=trainer["clip"],
            accumulate=trainer["accumulate"],
            channels_last=trainer["channels_last"],
            manual=trainer["manual"],
        )
        return Distiller(
            self.cast,
            self.plugins,
            self.bindings,
            weights,
            optimization,
            seed=self.recipe.seed,
            stage=stage,
            side=self.recipe.side,
        )

    def first_batch(self) -> Batch:
        """Returns the first training batch.

        Raises:
            KDBenchError: The task's loader gives something else.
        """
        batch = next(iter(self.data.train_dataloader()))
        if not isinstance(batch, Batch):
            raise KDBenchError(
                f"task {self.task.name}: its training loader gives a {type(batch).__name__}, expected a "
                "kdbench.task.Batch"
            )
        return batch

    def run(self, work: Path, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()) -> dict[str, Any]:
        """Trains, scores and saves; continues from the last epoch that ``work`` holds.

        With several devices, processes beside this one train too; all else is done here.

        Args:
            work: Folder for the products; its ``scratch/`` holds what a resumed training needs.
            callbacks: Further callbacks (progress).
            loggers: Lightning loggers.

        Returns:
            The manifest: scores, cost and terms.

        Raises:
            Diverged: A loss or a metric is not finite.
        """
        size, device = self.recipe.trainer["devices"], pick_device(self.recipe.trainer["accelerator"])
        if device.type == "cuda" and size > torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise KDBenchError(f"trainer.devices={size}: found {found} GPU: ask for fewer, or trainer.accelerator=cpu")
        job = functools.partial(_help, self.recipe, _light(self.task), self.products, work)
        with PeakMemory() as memory:
            with helped(size, job) as place:
                history = self.fit(work, place, callbacks, loggers)
            manifest = self._finish(work, history, work / "scratch" / self.stages[-1].name / BEST, device)
        manifest["cost"]["peak_rss_mb"] = memory.peak_mb
        return manifest

    def fit(
        self, work: Path, place: Place, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()
    ) -> History:
        """Trains all stages, as one of the processes of this training."""
        history = History()
        if self.recipe.given:
            return history
        keep_freed()
        with threads(self.recipe.trainer["threads"], place.size):
            for stage in self.stages:
                folder = work / "scratch" / stage.name
                folder.mkdir(parents=True, exist_ok=True)
                history = self._fit(stage, folder, place, [*callbacks], loggers, history)
        return history

    def _fit(
        self,
        stage: Stage,
        folder: Path,
        place: Place,
        callbacks: list[Callback],
        loggers: Sequence[Logger],
        before: History,
    ) -> History:
        config = self.recipe.trainer
        self.enter(stage)
        distiller = self.distiller(stage)
        distiller.rehearse(self.first_batch())
        assert distiller.plan is not None
        history = History(folder, before, self.task.higher_is_better, self.task.selection)
        distiller.val_data, distiller.val_every = self.data.val_dataloader(), config["val_every"]
        epochs = max(1, round(config["epochs"] * stage.epochs))
        # Only here there is a group: the rehearsal before it saw the whole first batch in every process.
        with _quiet(), group(place, stage.name, pick_device(config["accelerator"])):
            if any(u.batch == "meta" for u in distiller.plan.updates):
                data: Any = self.data
                cuts = {"train": data.train_dataloader(without_meta=True), "meta": data.meta_dataloader()}
                loaders: Any = CombinedLoader(cuts, "max_size_cycle")
            else:
                loaders = self.data.train_dataloader()
            trainer = Trainer(
                max_epochs=epochs,
                max_time={"minutes": config["max_minutes"]} if config["max_minutes"] else None,
                accelerator=config["accelerator"],
                devices=config["devices"],
                strategy=Shared(place) if place.size > 1 else "auto",
                precision=config["precision"],
                gradient_clip_val=config["clip"] if distiller.automatic_optimization else None,
                accumulate_grad_batches=config["accumulate"] if distiller.automatic_optimization else 1,
                callbacks=[*callbacks, history],
                logger=list(loggers) or False,
                log_every_n_steps=1_000_000,
                enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            last = folder / "last.ckpt"
            if last.exists():
                _set_epoch(loaders, torch.load(last, map_location="cpu", weights_only=True)["epoch"] + 1)
            if config["precision"] == "64-true":
                distiller.double()  # as Lightning does, but before it loads the checkpoint
            trainer.fit(distiller, loaders, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        return history

    def _finish(self, work: Path, history: History, best: Path, device: torch.device) -> dict[str, Any]:
        task, left = self.task, artifacts(self.plugins.values(), self.cast.models())
        for found in left.values():
            # Also what was trained in double precision is scored and kept in single precision.
            found.module.to(found.device or device, torch.float32).eval()
        main = left.pop("student")
        self._save(main.module, work)
        for name, found in left.items():
            save_weights(found.module, work / f"{name}.safetensors")
        scores: dict[str, Any] = {"val": history.last_validation}
        if not scores["val"]:  # the time was up in an epoch without validation
            scores["val"] = self._score(main, "val", device)
        beside: dict[str, dict[str, Any]] = {
            name: {"params": count_params(found.module)} for name, found in left.items()
        }
        if self.recipe.scored:
            scores["test"] = self._score(main, "test", device)
            if history.best_epoch == history.epochs - 1 or not best.exists():
                scores["best_on_val"] = dict(scores["test"])
            else:
                other = replace(main, module=copy.deepcopy(main.module))
                load_weights(other.module, best)
                scores["best_on_val"] = self._score(other, "test", device)
            for name, found in left.items():
                beside[name] |= {"test": self._score(found, "test", device)}
            if task.primary not in scores["test"]:
                raise Diverged(f"{task.primary} is undefined: the test set holds nothing to score")
        history.write(work / "metrics.csv")
        seen = max(1, history.samples)
        return {
            "role": self.recipe.side,
            "name": self.recipe.name,
            "params": count_params(main.module),
            "bytes": (work / (DEPLOYED if (work / DEPLOYED).exists() else MODEL)).stat().st_size,
            "scores": scores,
            "beside": {n: v | {"bytes": (work / f"{n}.safetensors").stat().st_size} for n, v in beside.items()},
            "best_epoch": history.best_epoch,
            "terms": history.terms(),
            "flags": history.idle(),
            "cost": {
                "epochs": history.epochs,
                "samples_seen": history.samples,
                "student_passes": history.passes.get("student", 0) / seen,
                "teacher_passes": sum(n for r, n in history.passes.items() if r != "student") / seen,
                "wall_s": history.wall,
                "added_params": sum(count_params(p) for p in self.plugins.values()),
            },
        }

    def _score(self, found: Artifact, split: str, device: torch.device) -> dict[str, float]:
        """Scores what this training leaves on one split of its data."""
        place = torch.device(found.device or device)
        loader = self.data.val_dataloader() if split == "val" else self.data.test_dataloader()
        return self.task.evaluate(found.module, found.reads(loader), split, place)

    def _save(self, model: nn.Module, work: Path) -> None:
        """Writes the student under its plain names; what is deployed too, where that is more than the student."""
        if model.state_dict().keys() == self._plain:
            save_weights(model, work / MODEL)
        else:
            save_weights(plain(self.cast.model("student")), work / MODEL)
            save_weights(model, work / DEPLOYED)


def train(
    recipe: Recipe,
    task: Task,
    work: Path,
    products: Mapping[str, Path] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Trains a recipe in ``work`` and returns its manifest; see :meth:`Training.run`."""
    return Training(recipe, task, products).run(work, callbacks, loggers)


def _help(recipe: Recipe, task: Task, products: Mapping[str, Path], work: Path, place: Place) -> None:
    """Trains beside another process, which makes the product."""
    Training(recipe, task, products).fit(work, place)


def _light(task: Task) -> Task:
    """Returns a task without the data that it has read and can read again, to be sent to another process."""
    light = copy.copy(task)
    for name in [n for n in vars(task) if isinstance(getattr(type(task), n, None), functools.cached_property)]:
        del light.__dict__[name]
    return light


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's notes on devices, loaders and frozen modules: what matters is checked by rehearsal."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _scaled(weight: Any, factor: float, term: str) -> Any:
    """Applies the tuned factor to a distillation term; supervised terms keep their weight."""
    if factor == 1.0 or term.split(".")[0] == "task":
        return weight
    return {**weight, "value": weight["value"] * factor} if isinstance(weight, Mapping) else weight * factor


def _set_epoch(loaders: Any, epoch: int) -> None:
    """Tells loaders where a resumed training begins: their workers prefetch before Lightning says so."""
    for loader in getattr(loaders, "flattened", [loaders]):
        loader.sampler.set_epoch(epoch)


def pick_device(accelerator: str) -> torch.device:
    """Returns where ``trainer.accelerator`` trains.

    Raises:
        KDBenchError: It is not there.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise KDBenchError(
            f"trainer.accelerator={accelerator}: there is no GPU that torch can use: leave it auto, or cpu"
        )
    return torch.device("cuda")
