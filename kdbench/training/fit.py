"""One training from a recipe to a trained model, resumable at every epoch."""

from __future__ import annotations

import copy
import functools
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn

from kdbench.base import rng
from kdbench.base.memory import keep_freed
from kdbench.base.store import MANIFEST
from kdbench.base.weights import load_plain, load_weights, plain, save_weights
from kdbench.data import SeededLoader
from kdbench.errors import KDBenchError
from kdbench.needs import Artifact, Role, Stage
from kdbench.optim import Optimization
from kdbench.plugin import Plugin, artifacts
from kdbench.roles.cast import Cast
from kdbench.roles.replay import Replayed, Shelf
from kdbench.roles.sources import Ensemble, Network, Source, Table
from kdbench.task import Batch, Task
from kdbench.training.distiller import Distiller
from kdbench.training.history import History
from kdbench.training.measure import PeakMemory, count_params
from kdbench.training.models import build_side
from kdbench.training.plan import merge_roles, merge_stages, of_owner
from kdbench.training.processes import Place, Shared, group, helped, threads
from kdbench.training.recipe import BEST, CORPUS, DEPLOYED, MODEL, PACKED, Answers, Recipe, Replay, start_of, trained

#: What a training takes for a role: weights, or folders by feature.
Given: TypeAlias = Path | Mapping[str, Path]


class Training:
    """A recipe brought to life: networks, plugins and data, ready to rehearse or to train.

    Args:
        recipe: What to train.
        task: The task.
        products: By role, the weights of the trained networks that the recipe takes as inputs; of stored answers the
            folder of each feature.
        untrained: Lets fresh weights stand in for those that are not there (rehearsal, doctor).
        foreign: Task of the teacher, where that tells other classes.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        products: Mapping[str, Given] | None = None,
        untrained: bool = False,
        foreign: Task | None = None,
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.foreign = foreign
        self.products = dict(products or {})
        self.seen_through = ""  # in the file of weights that the user gives
        self.pair = recipe.pair
        self.plugins: dict[str, Plugin] = {}
        self.bindings = recipe.bindings(task)
        roles: dict[str, Mapping[str, Role]] = {}
        for owner, spec in recipe.plugins.items():
            with rng.scope(recipe.seed, "init", owner):
                self.plugins[owner] = spec.make()
            absent = recipe.absent(owner)
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
            product = self.products.get(name)
            if isinstance(product, Mapping):
                shelves = {feature: Shelf(folder) for feature, folder in product.items()}
                sources[name] = Replayed(name, shelves, self.task)
                continue
            model = self._initial(name, role)
            if role.init == "trained":
                if product is None and not untrained:
                    raise KDBenchError(f"role {name!r} starts from a trained {role.side}, and this run has none")
                if product is not None:
                    load_weights(model, product)
            elif role.init == "student":
                model.load_state_dict(sources["student"].model.state_dict())  # type: ignore[union-attr]
            whole = isinstance(model, Ensemble) or not self.plugins
            task, taps = self._task(role), None if whole else side.get("taps")
            reads = None if task is self.task else functools.partial(self.task.ops()["translate"], other=task)
            sources[name] = Network(task, model, taps, reads)
        self.cast.sources = sources
        self._plain = frozenset(self.cast.model("student").state_dict())
        self.cast.parts = {name: self.pair[role.side].get("parts") or {} for name, role in roles.items()}

    def _task(self, role: Role) -> Task:
        """Returns the task of a role's network."""
        taught = role.side == "teacher" and role.init == "trained"
        return self.foreign if taught and self.foreign is not None else self.task

    def _initial(self, name: str, role: Role) -> nn.Module:
        """Builds the model of a role with its initial weights."""
        side = self.recipe.side if role.side == "student" else role.side
        recipe = (role.init == "trained" and trained(self.recipe.inputs.get(name))) or self.recipe
        ours = name == "student"
        files = recipe.starts if ours or role.init == "trained" else []
        # What a training is about starts from the stream of its own name: a student and its scratch twin are twins.
        with rng.scope(self.recipe.seed, "init", self.recipe.side if ours else name):
            model = build_side(self._task(role), self.pair[role.side]["architecture"], side, len(files))
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
            load_plain(self.cast.model("student"), self._initial("student", self.cast.roles["student"]).state_dict())

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

    def loader(self, cut: str = "train", **options: Any) -> Any:
        """Returns the loader of ``train`` or ``meta``, whose samples are seen in a pool of views where there is one.

        Raises:
            KDBenchError: It cannot have one.
        """
        found = getattr(self.data, f"{cut}_dataloader")(**options)
        replayed = any(isinstance(given, Replay) for given in self.recipe.inputs.values())
        if self.recipe.views or replayed:
            if not isinstance(found, SeededLoader):
                raise KDBenchError(
                    f"teacher.replay: the {cut} loader of task {self.task.name} is a {type(found).__name__}, expected "
                    "a kdbench.data.SeededLoader, whose keys name the views"
                )
            found.replay(self.recipe.views or 1)
        return found

    def first_batch(self) -> Batch:
        """Returns the first training batch.

        Raises:
            KDBenchError: The task's loader gives something else.
        """
        batch = next(iter(self.loader()))
        if not isinstance(batch, Batch):
            raise KDBenchError(
                f"task {self.task.name}: its training loader gives a {type(batch).__name__}, expected a "
                "kdbench.task.Batch"
            )
        return batch

    def run(self, work: Path, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()) -> dict[str, Any]:
        """Trains and saves; continues from the last epoch that ``work`` holds.

        With several devices, processes beside this one train too; all else is done here.

        Args:
            work: Folder for the products; its ``scratch/`` holds what a resumed training needs.
            callbacks: Further callbacks (progress).
            loggers: Lightning loggers.

        Returns:
            The manifest: scores on validation, cost and terms.

        Raises:
            Diverged: A loss is not finite.
        """
        size, device = self.recipe.trainer["devices"], pick_device(self.recipe.trainer["accelerator"])
        if device.type == "cuda" and size > torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise KDBenchError(f"trainer.devices={size}: found {found} GPU: ask for fewer, or trainer.accelerator=cpu")
        foreign = None if self.foreign is None else _light(self.foreign)
        job = functools.partial(_help, self.recipe, _light(self.task), self.products, work, foreign)
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
        if not stage.epochs:
            distiller.build(self.first_batch())
            return before
        distiller.rehearse(self.first_batch())
        assert distiller.plan is not None
        for source in self.cast.sources.values() if config["compile"] else ():
            if isinstance(source, Network):
                source.compiles()
        history = History(folder, before, self.task.higher_is_better, self.task.selection)
        distiller.val_data, distiller.val_every = self.data.val_dataloader(), config["val_every"]
        epochs = max(1, round(config["epochs"] * stage.epochs))
        # Only here there is a group: the rehearsal before it saw the whole first batch in every process.
        with _quiet(), group(place, stage.name, pick_device(config["accelerator"])):
            if any(u.batch == "meta" for u in distiller.plan.updates):
                cuts = {"train": self.loader(without_meta=True), "meta": self.loader("meta")}
                loaders: Any = CombinedLoader(cuts, "max_size_cycle")
            else:
                loaders = self.loader()
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
        left = artifacts(self.plugins.values(), self.cast.models())
        for found in left.values():
            # Also what was trained in double precision is scored and kept in single precision.
            found.module.to(found.device or device, torch.float32).eval()
        main = left.pop("student")
        self._save(main.module, work)
        packed = _pack(main, work / PACKED)
        beside: dict[str, dict[str, Any]] = {}
        for name, found in left.items():
            path = work / f"{name}.safetensors"
            save_weights(found.module, path)
            beside[name] = {"params": count_params(found.module), "bytes": path.stat().st_size}
        if best.exists() and history.best_epoch < history.epochs - 1:
            shutil.copyfile(best, work / BEST)
        validation = history.last_validation
        if not validation:  # the time was up in an epoch without validation
            place, loader = torch.device(main.device or device), main.reads(self.data.val_dataloader())
            validation = self.task.evaluate(main.module, loader, "val", place)
        history.write(work / "metrics.csv")
        pictures = self._draw(work, history, device)
        seen = max(1, history.samples)
        written = self._corpus()
        tokens = {"student": 0, "teacher": written.get("tokens", 0)}
        for role, count in history.tokens.items():
            tokens["student" if role == "student" else "teacher"] += count
        return {
            "role": self.recipe.side,
            "name": self.recipe.name,
            "params": count_params(main.module),
            "bytes": (work / (DEPLOYED if (work / DEPLOYED).exists() else MODEL)).stat().st_size,
            "packed": packed,
            "scores": {"val": validation},
            "beside": beside,
            "pictures": pictures,
            "best_epoch": history.best_epoch,
            "terms": history.terms(),
            "flags": [
                *self._replayed(),
                *_kept(written),
                *history.idle(),
                *(n for p in self.plugins.values() for n in p.notes()),
            ],
            "cost": {
                "epochs": history.epochs,
                "samples_seen": history.samples,
                "student_passes": history.passes.get("student", 0) / seen,
                "teacher_passes": sum(n for r, n in history.passes.items() if r != "student") / seen,
                **{f"{role}_tokens": count for role, count in tokens.items() if count},
                "wall_s": history.wall,
                "added_params": sum(count_params(p) for p in self.plugins.values()),
            },
        }

    def _draw(self, work: Path, history: History, device: torch.device) -> list[str]:
        """Saves what the plugins draw of what they learned and returns the names of the files."""
        if all(spec.plugin.pictures is Plugin.pictures for spec in self.recipe.plugins.values()):
            return []
        distiller, names = self.distiller(self.stages[-1]).to(device, torch.float32), []
        with distiller.at_rest(), torch.no_grad():
            signals = distiller.probe(self.first_batch())
            for owner, plugin in distiller.owned():
                for name, image in plugin.pictures(signals.bound(self.bindings[owner]), history.rows).items():
                    names.append(f"{owner}_{name}.png")
                    image.save(work / names[-1])
        return names

    def _replayed(self) -> list[str]:
        """Returns the flag of a pool of views, with what half precision lost of the answers."""
        replays = [given for given in self.recipe.inputs.values() if isinstance(given, Replay)]
        sources = [source for source in self.cast.sources.values() if isinstance(source, Replayed)]
        views = self.recipe.views or (1 if replays else None)
        error = max((source.error for source in sources), default=0.0)
        lost = f", float16 (largest error {error:.1g} of the largest value)" if error else ""
        return [] if views is None else [f"replay:{views}{lost}"]

    def _corpus(self) -> Mapping[str, Any]:
        """Returns the manifest of what was written for this training; nothing where there is none."""
        folder = self.products.get(CORPUS)
        found: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text()) if isinstance(folder, Path) else {}
        return found

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
    products: Mapping[str, Given] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    foreign: Task | None = None,
) -> dict[str, Any]:
    """Trains a recipe in ``work`` and returns its manifest; see :meth:`Training.run`."""
    return Training(recipe, task, products, foreign=foreign).run(work, callbacks, loggers)


def _help(
    recipe: Recipe, task: Task, products: Mapping[str, Given], work: Path, foreign: Task | None, place: Place
) -> None:
    """Trains beside another process, which makes the product."""
    Training(recipe, task, products, foreign=foreign).fit(work, place)


def _kept(written: Mapping[str, Any]) -> list[str]:
    """Returns the flag of a corpus: how many samples of it were read."""
    return [f"corpus:{written['samples']} of {written['written']} written samples"] if written else []


def _pack(found: Artifact, path: Path) -> dict[str, float]:
    """Writes the weights of an artifact in fewer bytes, where it can; returns what the record says of the file."""
    if found.pack is None:
        return {}
    made = found.pack()
    path.write_bytes(made.content)
    facts = {"bits": made.bits, "coded_bytes": made.coded_bytes, "float_params": made.float_params}
    return {"packed_bytes": len(made.content), **facts}


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
