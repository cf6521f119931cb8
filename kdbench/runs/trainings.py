"""The trainings that a run is made of: who is trained, under which plugins, and from whose products.

Mostly these are the pair's teacher, the student alone (its scratch twin), tuning trials and the distilled student. A
plugin may take part in the teacher's training too, ask for further ones, or leave no twin. Each is a recipe with a key;
its product is made once and kept in the store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.base.store import Product, Store
from kdbench.configuration.resolved import PluginSpec, Resolved, make_task
from kdbench.errors import KDBenchError, nearest
from kdbench.records.schema import Tuning
from kdbench.training.recipe import MODEL, Answers, Recipe, start_digest, start_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdbench.needs import Asked, Role
    from kdbench.task import Task

#: ``(name of a training, epochs)`` -> callbacks and loggers that follow it.
Followers = Callable[[str, int], tuple[list[Any], list[Any]]]


#: Why a run with ``teacher.answers`` has no score of its teacher.
NO_NETWORK = "the teacher is a table of stored answers"


def unfollowed(name: str, epochs: int) -> tuple[list[Any], list[Any]]:
    """Follows no training."""
    return [], []


@dataclass
class Trainings:
    """The trainings that one configuration asks for.

    Attributes:
        resolved: The configuration, its task and plugins.
        follow: Makes what follows a training (progress bar, loggers).
        started: When; with ``rerun`` a product that was made earlier is made again.
    """

    resolved: Resolved
    follow: Followers = unfollowed
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration."""
        return self.resolved.config

    @property
    def task(self) -> Task:
        """The task on the student's data."""
        return self.resolved.task

    @property
    def store(self) -> Store:
        """Where products live."""
        return self.resolved.store

    # ---- recipes ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def teacher_task(self) -> Task:
        """The task on the teacher's own data (``teacher.data``), mostly the task itself."""
        own = self.config["teacher"]["data"]
        return make_task({**self.config, "data": own}, self.store) if own else self.task

    @functools.cached_property
    def teacher_recipe(self) -> Recipe | Answers:
        """The pair's teacher, trained alone or under the plugins that take part in its training; or stored answers."""
        answers = self.config["teacher"]["answers"]
        if answers:
            _check_file("teacher.answers", Path(answers))
            return Answers(Path(answers), start_digest(answers))
        return self._alone("teacher", "teacher")

    @functools.cached_property
    def no_twin(self) -> str:
        """Why there is no scratch student; empty where there is one."""
        reasons = [self.task.no_twin, *(spec.plugin.no_twin for spec in self._taking_part("student").values())]
        return next(filter(None, reasons), "")

    @property
    def absent(self) -> str:
        """Why the run lacks teacher, scratch student or distilled student; empty where it has all."""
        if self.config["role"]:
            return "one role was trained alone"
        return self.no_twin or (NO_NETWORK if isinstance(self.teacher_recipe, Answers) else "")

    @functools.cached_property
    def scratch_recipe(self) -> Recipe:
        """The student alone under the run's seed: same data, schedule, augmentation and quantisation.

        An augmentation that takes a trained network stays out; a quantisation that takes one is taught by the twin's
        own float student.
        """
        alone = self._alone("student", "scratch")
        kept = {owner: spec for owner, spec in alone.plugins.items() if owner != "method"}
        for owner, spec in list(kept.items()):
            if owner != "quant" and any(role.init == "trained" for role in spec.plugin.roles.values()):
                del kept[owner]
        return self._with_inputs(replace(alone, plugins=kept), float_only=True)

    def student_recipe(self, factor: float = 1.0) -> Recipe:
        """The distilled student, or where nothing is distilled the scratch student."""
        if self.distils:
            return self._with_inputs(replace(self._alone("student", "student"), factor=factor))
        if self.no_twin:
            raise KDBenchError(f"method=none trains the student alone, which cannot be: {self.no_twin}")
        return self.scratch_recipe

    @functools.cached_property
    def distils(self) -> bool:
        """Whether the student has plugins that its scratch twin has not."""
        return self.scratch_recipe.plugins.keys() != self._taking_part("student").keys()

    @property
    def main_recipe(self) -> Recipe:
        """The training that the run is about."""
        if self.config["role"] != "teacher":
            return self.student_recipe()
        if isinstance(self.teacher_recipe, Answers):
            raise KDBenchError("role=teacher trains one: leave out teacher.answers")
        return self.teacher_recipe

    def recipes(self) -> list[Recipe]:
        """Returns all trainings of the run in an order in which they can be made, trials aside."""
        role, roots = self.config["role"], list[Recipe | Answers]()
        if role != "student":
            roots.append(self.teacher_recipe)
        if role != "teacher":
            roots += [self._asked(spec, asked) for spec, asked in self._all_asked()]
            roots += [] if self.no_twin else [self.scratch_recipe]
            roots.append(self.student_recipe())
        found = (recipe for root in roots if isinstance(root, Recipe) for recipe in _with_sources(root))
        return list({recipe.key: recipe for recipe in found}.values())

    def _taking_part(self, side: str) -> dict[str, PluginSpec]:
        return {owner: spec for owner, spec in self.resolved.plugins.items() if side in spec.plugin.takes_part}

    def _alone(self, side: str, name: str) -> Recipe:
        """Returns a side's recipe under the plugins that take part there, without inputs yet."""
        pair = self.config["pair"]
        if not isinstance(pair.get(side), dict):
            known = [key for key, value in pair.items() if isinstance(value, dict) and "architecture" in value]
            raise KDBenchError(f"pair {pair['name']} has no {side!r}, which {name!r} trains: {nearest(side, known)}")
        # Everything but the student is made once, whatever the seed of the student.
        seed = int(self.config["seed"] if side == "student" else self.config["teacher"]["seed"])
        taught = side == "teacher"
        config = {**self.config, "data": (taught and self.config["teacher"]["data"]) or self.config["data"]}
        task = self.teacher_task if taught else self.task
        recipe = Recipe(name, side, config, self._taking_part(side), seed, task.dataset().digest)
        for start in recipe.starts:
            _check_file(f"{side}.init_from", start_of(start)[0])
        digests = [start_digest(start) for start in recipe.starts]
        given = bool(digests) and side != "student"
        return replace(recipe, files={"init_from": digests} if digests else {}, given=given)

    def _with_inputs(self, recipe: Recipe, float_only: bool = False) -> Recipe:
        """Returns a recipe with the trainings whose products its plugins take."""
        inputs = {
            name: self._source(recipe, spec, role, float_only)
            for spec in recipe.plugins.values()
            for name, role in spec.plugin.roles.items()
            if role.init == "trained"
        }
        return replace(recipe, inputs=inputs)

    def _source(self, recipe: Recipe, spec: PluginSpec, role: Role, float_only: bool) -> Recipe | Answers:
        if float_only or role.product == "float":
            others = {owner: other for owner, other in recipe.plugins.items() if owner != spec.owner}
            return self._with_inputs(replace(recipe, name="float", plugins=others, inputs={}), float_only)
        return self._product(spec, role.product or role.side)

    def _product(self, spec: PluginSpec, name: str) -> Recipe | Answers:
        asked = {asked.name: asked for asked in spec.plugin.trainings}
        if name in asked:
            return self._asked(spec, asked[name])
        return self.teacher_recipe if name == "teacher" else replace(self._alone(name, name), plugins={})

    def _asked(self, spec: PluginSpec, asked: Asked) -> Recipe:
        recipe = self._alone(asked.side, asked.name)
        if asked.inputs is None:
            return replace(recipe, plugins={})
        inputs = {role: self._product(spec, name) for role, name in asked.inputs.items()}
        return replace(recipe, plugins={spec.owner: spec}, inputs=inputs)

    def _all_asked(self) -> Iterator[tuple[PluginSpec, Asked]]:
        for spec in self.resolved.plugins.values():
            for asked in spec.plugin.trainings:
                yield spec, asked

    # ---- products ---------------------------------------------------------------------------------------------

    def check_data(self) -> None:
        """Checks, before anything trains, that the data of all roles has something to learn from and to score.

        Raises:
            KDBenchError: It has not.
        """
        from kdbench.runs import counts

        tuned = bool(self.config["tuning"]["trials"]) and self.distils
        counts.check(self.task, tuned)
        if self.teacher_task is not self.task:
            counts.check(self.teacher_task)

    def rehearse(self) -> dict[str, str]:
        """Takes the first batch through every stage of every training of the run, before anything trains.

        Returns:
            What was seen through in the weights that the user gives, by the key that names them.

        Raises:
            KDBenchError: A tap, an option or a weights file is wrong, the task does not keep what it declares, or a
                model cannot be measured.
        """
        notes: dict[str, str] = {}
        for recipe in self.recipes():
            if self.store.find("model", recipe.key):
                continue
            from kdbench.plugin import artifacts
            from kdbench.training.fit import Training, pick_device
            from kdbench.training.promises import check_promises, try_out

            task = self.task_of(recipe)
            training = Training(recipe, task, untrained=True)
            if training.seen_through:
                notes[f"{recipe.side}.init_from"] = training.seen_through
            batch = training.first_batch()
            try_out(training, batch, pick_device(recipe.trainer["accelerator"]))
            check_promises(training, batch)
            for stage in () if recipe.given else training.stages:
                training.enter(stage)
                training.distiller(stage).rehearse(batch)
            for found in artifacts(training.plugins.values(), training.cast.models()).values():
                (found.export or task.measured)(found.module)
        return notes

    def task_of(self, recipe: Recipe) -> Task:
        """Returns the task on the data of a training."""
        return self.teacher_task if recipe.side == "teacher" else self.task

    def chosen(self) -> Trainings:
        """Returns the trainings with the student's architecture as the plugins choose it, from what they ask for."""
        student = self.config["pair"]["student"]
        architecture = student["architecture"]
        for spec in self.resolved.plugins.values():
            products = {asked.name: self.make(self._asked(spec, asked)).path for asked in spec.plugin.trainings}
            architecture = spec.plugin.choose(architecture, products)
        if architecture == student["architecture"]:
            return self
        pair = {**self.config["pair"], "student": {**student, "architecture": dict(architecture)}}
        return replace(self, resolved=replace(self.resolved, config={**self.config, "pair": pair}))

    def teacher(self) -> Product | None:
        """Returns the trained teacher; None where stored answers take its place.

        Raises:
            KDBenchError: It is below ``teacher.expect``.
        """
        if isinstance(self.teacher_recipe, Answers):
            return None
        product = self.make(self.teacher_recipe, main=self.config["role"] == "teacher")
        expect, tolerance = self.config["teacher"]["expect"], self.config["teacher"]["tolerance"]
        score = product.manifest["scores"]["test"][self.task.primary]
        short = (expect or 0.0) - score if self.task.higher_is_better else score - (expect or 0.0)
        if expect is not None and short > tolerance:
            raise KDBenchError(
                f"the teacher's {self.task.primary} is {score:.2f}, expected {expect:.2f} within {tolerance:g} "
                "(teacher.expect): train it longer, or check the weights in teacher.init_from"
            )
        return product

    def scratch(self) -> Product | None:
        """Returns the student trained alone, if it can be (:attr:`no_twin`)."""
        return None if self.no_twin else self.make(self.scratch_recipe, main=not self.distils)

    def student(self, factor: float = 1.0) -> Product:
        """Returns the distilled student."""
        return self.make(self.student_recipe(factor), main=True)

    def tune(self) -> Tuning | None:
        """Chooses the factor on the method's weights on validation, with the same trials for every method."""
        tuning = self.config["tuning"]
        factors = tuning["factors"][: tuning["trials"]]
        if not factors or not self.distils:
            return None
        from kdbench.training.history import Diverged

        scores: dict[float, float | None] = {}
        # Seeds that run side by side begin at different ends instead of waiting for each other.
        for factor in factors if self.config["seed"] % 2 == 0 else reversed(factors):
            recipe = self.student_recipe().trial(factor, tuning["seed"], tuning["length"])
            try:
                product = self.make(recipe)
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

    def make(self, recipe: Recipe, main: bool = False) -> Product:
        """Returns the product of a recipe, made with what it takes if it is not there.

        Args:
            recipe: One of this run's.
            main: Whether the run is about it: with ``rerun`` it is made again.
        """
        since = self.started if main and self.config["rerun"] else None

        def job(work: Path) -> dict[str, Any]:
            from kdbench.training.fit import train

            sources = {role: source for role, source in recipe.inputs.items() if isinstance(source, Recipe)}
            products = {role: self.weights(self.make(source)) for role, source in sources.items()}
            callbacks, loggers = self.follow(recipe.name, int(recipe.trainer["epochs"]))
            return train(recipe, self.task_of(recipe), work, products, callbacks, loggers)

        message = f"the {recipe.name} of {self.config['task']['name']}"
        return self.store.product("model", recipe.key, job, wait_message=message, since=since)


def _with_sources(recipe: Recipe) -> Iterator[Recipe]:
    """Yields the trainings whose products a recipe takes, and then itself."""
    for source in recipe.inputs.values():
        if isinstance(source, Recipe):
            yield from _with_sources(source)
    yield recipe


def _check_file(key: str, path: Path) -> None:
    if not path.is_file():
        raise KDBenchError(f"{key}={path}: there is no such file")
