"""Stages of a run: teacher, scratch student, tuning trials, distilled student; each made once and kept in the store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import counts
from kdbench.build import build, locate
from kdbench.cache import Product, Store
from kdbench.errors import KDBenchError
from kdbench.recipe import MODEL, Recipe, start_digest, start_of
from kdbench.schema import Tuning

if TYPE_CHECKING:
    from kdbench.task import Task

#: Who composes a run: whose configuration may name a plugin, in the order in which their views are made.
OWNERS = ("augment", "quant", "method")

#: ``(stage name, epochs)`` -> callbacks and loggers that follow the training of a stage.
Followers = Callable[[str, int], tuple[list[Any], list[Any]]]


def make_task(config: Mapping[str, Any], store: Store) -> Task:
    """Builds the task of a configuration and checks that it can serve the plugins."""
    from kdbench.compat import bind, removed

    spec = config["task"]
    task: Task = build("task", {k: v for k, v in spec.items() if k != "name"}, data=config["data"], store=store)
    plugins = configured(config)
    for owner, given in plugins.items():
        plugin: Any = locate(given["_target_"])
        bind(plugin, task, config["pair"], given.get("bind"), removed(plugins, owner))
    return task


def configured(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the configuration of every plugin that a run composes, by owner, in the order of their views."""
    return {owner: config[owner] for owner in OWNERS if config[owner].get("_target_")}


def untaught(plugins: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns the plugins that a scratch student keeps: not the method, and none that asks a trained teacher."""
    kept = {}
    for owner, spec in plugins.items():
        plugin: Any = locate(spec["_target_"])
        if owner != "method" and not any(role.init == "trained" for role in plugin.roles.values()):
            kept[owner] = spec
    return kept


@dataclass
class Stages:
    """The trainings that one configuration asks for.

    Attributes:
        config: The resolved configuration.
        task: The task, its data prepared.
        store: Where products live.
        follow: Makes what follows a training (progress bar, loggers).
        started: When; with ``rerun`` a product that was made earlier is made again.
    """

    config: Mapping[str, Any]
    task: Task
    store: Store
    follow: Followers
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @functools.cached_property
    def plugins(self) -> dict[str, Mapping[str, Any]]:
        """Configuration of every plugin that the run composes."""
        return configured(self.config)

    @property
    def distils(self) -> bool:
        """Whether something is compared: the student has plugins that its scratch twin has not."""
        return self.scratch_recipe.plugins != self.plugins

    @functools.cached_property
    def teacher_task(self) -> Task:
        """The task on the teacher's own data (``teacher.data``), mostly the task itself."""
        own = self.config["teacher"]["data"]
        return make_task({**self.config, "data": own}, self.store) if own else self.task

    @functools.cached_property
    def teacher_recipe(self) -> Recipe:
        """The pair's teacher, trained alone."""
        config = {**self.config, "data": self.config["teacher"]["data"] or self.config["data"]}
        return self._alone("teacher", int(self.config["teacher"]["seed"]), config, self.teacher_task)

    @functools.cached_property
    def scratch_recipe(self) -> Recipe:
        """The student trained alone under the run's seed: same data, schedule, augmentation and quantisation."""
        recipe = self._alone("student", int(self.config["seed"]), self.config, self.task)
        return replace(recipe, plugins=untaught(self.plugins))

    def _alone(self, side: str, seed: int, config: Mapping[str, Any], task: Task) -> Recipe:
        start = self.config[side]["init_from"]
        if start and not start_of(start)[0].is_file():
            raise KDBenchError(f"{side}.init_from={start}: there is no such file")
        files = {"init_from": start_digest(start)} if start else {}
        given = side == "teacher" and bool(start)
        return Recipe(side, side, config, {}, seed, task.dataset().digest, files=files, given=given)

    def student_recipe(self, factor: float = 1.0) -> Recipe:
        """The distilled student."""
        if not self.distils:
            return self.scratch_recipe
        return replace(self.scratch_recipe, plugins=self.plugins, teacher=self.teacher_recipe.key, factor=factor)

    @property
    def main_recipe(self) -> Recipe:
        """The training that the run is about."""
        return self.teacher_recipe if self.config["role"] == "teacher" else self.student_recipe()

    def check_data(self) -> None:
        """Checks, before anything trains, that the data of all roles has something to learn from and to score.

        Raises:
            KDBenchError: It has not.
        """
        tuned = bool(self.config["tuning"]["trials"]) and self.distils
        counts.check(self.task, tuned)
        if self.teacher_task is not self.task:
            counts.check(self.teacher_task)

    def rehearse(self) -> dict[str, str]:
        """Takes the first batch through every stage of what the run needs, before anything trains.

        Returns:
            What was seen through in the weights that the user gives, by the key that names them.

        Raises:
            KDBenchError: A tap, an option or a weights file is wrong, the task does not keep what it declares, or a
                model cannot be measured.
        """
        role = self.config["role"]
        needed = [] if role == "student" else [(self.teacher_recipe, self.teacher_task)]
        if role != "teacher":
            needed += [(self.scratch_recipe, self.task), (self.student_recipe(), self.task)]
        missing = {recipe.key: (recipe, task) for recipe, task in needed if not self.store.find("model", recipe.key)}
        notes: dict[str, str] = {}
        for recipe, task in missing.values():
            from kdbench.fit import Training, pick_device
            from kdbench.models import try_out
            from kdbench.promises import check_promises

            training = Training(recipe, task, untrained=True)
            if training.seen_through:
                notes[f"{recipe.side}.init_from"] = training.seen_through
            batch = training.first_batch()
            try_out(training, batch, pick_device(recipe.trainer["accelerator"]))
            check_promises(training, batch)
            for stage in () if recipe.given else training.stages:
                training.enter(stage)
                training.distiller(stage).rehearse(batch)
            task.measured(training.cast.model("student"))
        return notes

    def teacher(self) -> Product:
        """Returns the trained teacher.

        Raises:
            KDBenchError: It is below ``teacher.expect``.
        """
        product = self._make(self.teacher_recipe, "teacher", main=self.config["role"] == "teacher")
        expect, tolerance = self.config["teacher"]["expect"], self.config["teacher"]["tolerance"]
        score = product.manifest["scores"]["test"][self.task.primary]
        short = (expect or 0.0) - score if self.task.higher_is_better else score - (expect or 0.0)
        if expect is not None and short > tolerance:
            raise KDBenchError(
                f"the teacher's {self.task.primary} is {score:.2f}, expected {expect:.2f} within {tolerance:g} "
                "(teacher.expect): train it longer, or check the weights in teacher.init_from"
            )
        return product

    def scratch(self) -> Product:
        """Returns the student trained alone."""
        return self._make(self.scratch_recipe, "scratch", main=not self.distils)

    def student(self, factor: float = 1.0) -> Product:
        """Returns the distilled student."""
        return self._make(self.student_recipe(factor), "student", main=True)

    def tune(self) -> Tuning | None:
        """Chooses the factor on the method's weights on validation, with the same trials for every method."""
        tuning = self.config["tuning"]
        factors = tuning["factors"][: tuning["trials"]]
        if not factors or not self.distils:
            return None
        from kdbench.history import Diverged

        scores: dict[float, float | None] = {}
        # Seeds that run side by side begin at different ends instead of waiting for each other.
        for factor in factors if self.config["seed"] % 2 == 0 else reversed(factors):
            recipe = self.student_recipe().trial(factor, tuning["seed"], tuning["length"])
            try:
                product = self._make(recipe, f"trial ×{factor:g}")
            except Diverged:
                scores[factor] = None
                continue
            score = product.manifest["scores"]["val"].get(self.task.selection)
            if score is None:
                raise KDBenchError(f"tuning needs {self.task.selection} on validation, which holds nothing to score")
            scores[factor] = score
        sign = 1.0 if self.task.higher_is_better else -1.0
        finite = {f: sign * s for f in factors if (s := scores[f]) is not None}
        if not finite:
            raise Diverged("every tuning trial diverged: lower trainer.optimizer.lr or the factors")
        best = max(finite, key=finite.__getitem__)
        return Tuning(
            trials=len(factors), factor=best, seed=tuning["seed"], scores={f"{f:g}": scores[f] for f in factors}
        )

    def weights(self, product: Product) -> Path:
        """Returns the file of a product's weights."""
        return product.path / MODEL

    def _make(self, recipe: Recipe, name: str, main: bool = False) -> Product:
        """Returns the product of a recipe; with ``rerun`` the one that the run is about is made again."""
        since = self.started if main and self.config["rerun"] else None

        def make(work: Path) -> dict[str, Any]:
            from kdbench.fit import train

            teacher = self.weights(self.teacher()) if recipe.teacher else None
            callbacks, loggers = self.follow(name, int(recipe.trainer["epochs"]))
            task = self.teacher_task if recipe.side == "teacher" else self.task
            return train(recipe, task, work, teacher, callbacks, loggers)

        message = f"the {name} of {self.config['task']['name']}"
        return self.store.product("model", recipe.key, make, wait_message=message, since=since)
