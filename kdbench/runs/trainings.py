"""The trainings that a run is made of: who is trained, under which plugins, and from whose products.

Mostly these are the pair's teacher, the student alone (its scratch twin), tuning trials and the distilled student. A
plugin may take part in the teacher's training too, ask for further ones, or leave no twin. Each is a recipe with a key;
its product is made once and kept in the store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.base import rng
from kdbench.base.digest import digest, source_digest
from kdbench.base.outcomes import OUTCOMES
from kdbench.base.store import Product, Store
from kdbench.configuration.resolved import PluginSpec, Resolved, make_task
from kdbench.errors import KDBenchError, nearest
from kdbench.runs import stored, vocabularies
from kdbench.training import recipe as recipes
from kdbench.training.recipe import CORPUS, MODEL, Answers, Recipe, Replay, Source, Written, trained

if TYPE_CHECKING:
    from kdbench.needs import Asked, Role
    from kdbench.plugin import Plugin
    from kdbench.task import Task

#: Name of a training -> callbacks and loggers that follow it.
Followers = Callable[[str], tuple[list[Any], list[Any]]]


#: Why a run with ``teacher.answers`` has no score of its teacher.
NO_NETWORK = "the teacher is a table of stored answers"


def unfollowed(name: str) -> tuple[list[Any], list[Any]]:
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

    @functools.cached_property
    def pair(self) -> Mapping[str, Any]:
        """The pair as the plugins have it, from the one that is configured."""
        pair: Mapping[str, Any] = self.config["pair"]
        for spec in self.resolved.plugins.values():
            with rng.scope(0, "sides"):
                pair = spec.make().sides(pair, self.task)
        return pair

    # ---- recipes ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def teacher_task(self) -> Task:
        """The task on the teacher's own data (``teacher.data``), mostly the task itself."""
        own = self.config["teacher"]["data"]
        return make_task({**self.config, "data": own}, self.store) if own else self.task

    def foreign_to(self, recipe: Recipe) -> Task | None:
        """Returns the teacher's task where a training takes the teacher and that tells other classes.

        Raises:
            KDBenchError: A plugin of it cannot do with that.
        """
        takes = [s for s in recipe.plugins.values() if any(r.side == "teacher" for r in s.plugin.roles.values())]
        taught = any(source is not None and source.side == "teacher" for source in map(trained, recipe.inputs.values()))
        return vocabularies.foreign(self.task, self.teacher_task, self.config, takes) if taught else None

    @functools.cached_property
    def teacher_recipe(self) -> Recipe | Answers:
        """The pair's teacher, trained alone or under the plugins that take part in its training; or stored answers."""
        answers = self.config["teacher"]["answers"]
        if answers:
            _check_file("teacher.answers", Path(answers))
            return Answers(Path(answers), recipes.start_digest(answers))
        return self._alone("teacher", "teacher")

    @functools.cached_property
    def views(self) -> int | None:
        """How many views of a sample the student sees (``teacher.replay``); None draws anew in every epoch.

        Raises:
            KDBenchError: A plugin cannot do with stored answers.
        """
        from kdbench.configuration.compat import no_replay

        views = self.config["teacher"]["replay"]
        for owner, spec in self.resolved.plugins.items() if views else ():
            if reason := no_replay(spec.plugin):
                name = spec.given["name"]
                raise KDBenchError(f"{owner}={name} cannot replay a teacher: {reason}: teacher.replay=null")
        return views

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
        """The student alone under the run's seed: same data, schedule, and the plugins that stay (``Plugin.twin``)."""

        def stays(plugin: type[Plugin]) -> bool:
            taught = any(role.init == "trained" for role in plugin.roles.values())
            return plugin.twin == "own_float" or (plugin.twin == "untaught" and not taught)

        alone = self._alone("student", "scratch")
        kept = {owner: spec for owner, spec in alone.plugins.items() if stays(spec.plugin)}
        return self._with_inputs(replace(alone, plugins=kept, config=self._of_twin(alone.config)), float_only=True)

    def _of_twin(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a configuration whose student trains as the pair's twin does, where that has settings of its own."""
        twin = self.config["pair"].get("twin")
        if not twin:
            return config
        student = config["student"]
        return {**config, "student": {**student, "trainer": {**student["trainer"], **twin["trainer"]}}}

    @property
    def twin_flags(self) -> list[str]:
        """What the pair's twin has of its own, as flags of a record."""
        if self.no_twin or not self.config["pair"].get("twin"):
            return []
        plain, own = self._alone("student", "student").trainer, self.scratch_recipe.trainer
        changed = {key: (own[key], plain[key]) for key in own if own[key] != plain[key]}
        return [f"twin:{line}" for key, pair in changed.items() for line in _changes(key, *pair)]

    def student_recipe(self, factor: float = 1.0) -> Recipe:
        """The distilled student, or where nothing is distilled the scratch student."""
        if self.distils:
            return self._with_inputs(replace(self._alone("student", "student"), factor=factor))
        stored.asked(self.config, self.task, (), self.distils)
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
        found = {owner: spec for owner, spec in self.resolved.plugins.items() if side in spec.plugin.takes_part}
        taught = self.resolved.taught if side == "teacher" else {}
        return {**taught, **found, **taught}  # in place of the run's own augmentation, and first like it

    def _alone(self, side: str, name: str, pair: Mapping[str, Any] | None = None) -> Recipe:
        """Returns a side's recipe under the plugins that take part there, without inputs yet."""
        pair = self.pair if pair is None else pair
        if not isinstance(pair.get(side), dict):
            known = [key for key, value in pair.items() if isinstance(value, dict) and "architecture" in value]
            raise KDBenchError(f"pair {pair['name']} has no {side!r}, which {name!r} trains: {nearest(side, known)}")
        # Everything but the student is made once, whatever the seed of the student.
        seed = int(self.config["seed"] if side == "student" else self.config["teacher"]["seed"])
        taught = side == "teacher"
        config = {
            **self.config,
            "pair": pair,
            "data": (taught and self.config["teacher"]["data"]) or self.config["data"],
        }
        info = (self.teacher_task if taught else self.task).dataset()
        recipe = Recipe(name, side, config, self._taking_part(side), seed, info.learned or info.digest)
        for start in recipe.starts:
            _check_file(f"{side}.init_from", recipes.start_of(start)[0])
        digests = [recipes.start_digest(start) for start in recipe.starts]
        given = bool(digests) and side != "student"
        pooled = side == "student" and self.views is not None and self.task.augmented()
        return replace(
            recipe, files={"init_from": digests} if digests else {}, given=given, views=self.views if pooled else None
        )

    def _with_inputs(self, recipe: Recipe, float_only: bool = False) -> Recipe:
        """Returns a recipe with the trainings whose products its plugins take."""
        inputs: dict[str, Source] = {
            name: self._source(recipe, spec, role, float_only)
            for spec in recipe.plugins.values()
            for name, role in spec.plugin.roles.items()
            if role.init == "trained"
        }
        if self.views is not None and recipe.side == "student" and not float_only:
            half = self.config["teacher"]["replay_dtype"] == "float16"
            config = {**recipe.config, "trainer": recipe.trainer}  # of the student, in whose precision it answers
            for name, source in inputs.items():
                if isinstance(source, Recipe) and source.name != "float":  # that is another one for every seed
                    inputs[name] = Replay(source, config, recipe.dataset, recipe.views or 1, half)
        reads = recipe.side == "student" and not float_only
        if reads and stored.asked(self.config, self.task, self.resolved.plugins.values(), self.distils):
            assert isinstance(self.teacher_recipe, Recipe)
            inputs[CORPUS] = Written(self.teacher_recipe, recipe.config, recipe.dataset)
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
        if asked.inputs is None and asked.side not in self.config["pair"]:
            found = self._configured(self.pair.get(asked.side))
            if found is not None:
                return found
        recipe = self._alone(asked.side, asked.name)
        if asked.under is not None:
            return replace(recipe, plugins={spec.owner: PluginSpec.of(spec.owner, asked.under)})
        if asked.inputs is None:
            return replace(recipe, plugins={})
        inputs = {role: self._product(spec, name) for role, name in asked.inputs.items()}
        return replace(recipe, plugins={spec.owner: spec}, inputs=inputs)

    def _configured(self, entry: Any) -> Recipe | None:
        """Returns the training of an entry that is the student or the teacher as configured, alone: the run has it."""
        given = self.config["pair"]
        if entry == given["student"] and not self.no_twin:
            return self.scratch_recipe
        return replace(self._alone("teacher", "teacher", given), plugins={}) if entry == given["teacher"] else None

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
            from kdbench.training import answering
            from kdbench.training.fit import Training, pick_device
            from kdbench.training.promises import check_promises
            from kdbench.training.tryout import try_out

            task = self.task_of(recipe)
            training = Training(recipe, task, untrained=True, foreign=self.foreign_to(recipe))
            if training.seen_through:
                notes[f"{recipe.side}.init_from"] = training.seen_through
            batch = training.first_batch()
            try_out(training, batch, pick_device(recipe.trainer["accelerator"]))
            check_promises(training, batch)
            answering.rehearse(training, batch, self.config["teacher"]["replay_limit"])
            for stage in () if recipe.given else training.stages:
                training.enter(stage)
                distiller = training.distiller(stage)
                distiller.rehearse(batch) if stage.epochs else distiller.build(batch)
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
        product = self.tested(self.teacher_recipe, main=self.config["role"] == "teacher")
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
        return None if self.no_twin else self.tested(self.scratch_recipe, main=not self.distils)

    def matched(self, length: float) -> Product:
        """Returns the student trained alone, its epochs and schedule stretched by ``length``."""
        return self.tested(replace(self.scratch_recipe, name="matched scratch", length=length))

    def student(self, factor: float = 1.0) -> Product:
        """Returns the distilled student."""
        return self.tested(self.student_recipe(factor), main=True)

    def scored(self) -> dict[str, Product]:
        """Returns what plugins ask for and the record holds the scores of, by its name there."""
        found = ((asked.scored, self._asked(spec, asked)) for spec, asked in self._all_asked() if asked.scored)
        return {name: self.tested(recipe) for name, recipe in found}

    def make(self, recipe: Recipe, main: bool = False) -> Product:
        """Returns the product of a recipe, made with what it takes if it is not there.

        Args:
            recipe: One of this run's.
            main: Whether the run is about it: with ``rerun`` it is made again.
        """
        since = self.started if main and self.config["rerun"] else None

        def job(work: Path) -> dict[str, Any]:
            from kdbench.training.fit import train

            products: dict[str, Path | Mapping[str, Path]] = {}
            task = self.task_of(recipe)
            for role, source in recipe.inputs.items():
                if isinstance(source, Recipe):
                    products[role] = self._weights(source)
                elif isinstance(source, Replay):
                    given, limit = self._weights(source.source), self.config["teacher"]["replay_limit"]
                    read = recipe.reads(self.task, role)
                    products[role] = stored.answers(self.store, self.task, source, given, read, limit)
                elif isinstance(source, Written):
                    folder = stored.corpus(self.store, self.task, source, self._weights, recipe)
                    products[role] = folder
                    task = stored.reading(recipe.config, self.store, folder, recipe.beside)
            callbacks, loggers = self.follow(recipe.name)
            return train(recipe, task, work, products, callbacks, loggers, self.foreign_to(recipe))

        message = f"the {recipe.name} of {self.config['task']['name']}"
        return self.store.product("model", recipe.key, job, wait_message=message, since=since)

    def _weights(self, recipe: Recipe) -> Path:
        return self.make(recipe).path / MODEL

    def tested(self, recipe: Recipe, main: bool = False) -> Product:
        """Returns the product of a recipe as :meth:`make` does, with its scores on the test set.

        The manifest's ``outcomes`` is the file of what each sample contributed, where there is one. These are a product
        of their own: where the test set alone has changed, it is scored anew.
        """
        made, task = self.make(recipe, main), self.task_of(recipe)

        def job(work: Path) -> dict[str, Any]:
            from kdbench.training.trained import score

            return score(recipe, task, made.path, made.manifest["beside"], work)

        code = source_digest(["kdbench.training.trained"])
        key = digest([recipe.key, made.manifest["created"], task.dataset().digest, code])
        product = self.store.product("scores", key, job, wait_message=f"the scores of the {recipe.name}")
        found, outcomes = product.manifest, product.path / OUTCOMES
        aimed = functools.partial(self._aimed, found["test"] if recipe.key == self.scratch_recipe.key else None)
        scores = {**made.manifest["scores"], **{key: aimed(found[key]) for key in ("test", "best_on_val")}}
        left = {name: aimed(test) for name, test in found["beside"].items()}
        beside = {name: {**facts, "test": left[name]} for name, facts in made.manifest["beside"].items()}
        kept = {"outcomes": outcomes} if outcomes.is_file() else {}
        return replace(made, manifest={**made.manifest, "scores": scores, "beside": beside, **kept})

    def _aimed(self, aim: Mapping[str, float] | None, test: Mapping[str, float]) -> Mapping[str, float]:
        """Returns scores with their distance to those of the student alone, where it is the aim (:attr:`Task.aim`).

        Args:
            aim: Its scores; None to ask for them.
            test: What is scored.
        """
        name = self.task.aim
        if not name:
            return test
        if aim is None:
            alone = self.scratch()
            if alone is None:
                raise KDBenchError(
                    f"{self.task.primary} is the distance to the student trained alone, which cannot be: {self.no_twin}"
                )
            aim = alone.manifest["scores"]["test"]
        return {**test, self.task.primary: abs(test[name] - aim[name])}


def _with_sources(recipe: Recipe) -> Iterator[Recipe]:
    """Yields the trainings whose products a recipe takes, and then itself."""
    for source in map(trained, recipe.inputs.values()):
        if source is not None:
            yield from _with_sources(source)
    yield recipe


def _changes(key: str, own: Any, plain: Any) -> Iterator[str]:
    """Yields what of one value is otherwise in another, by dotted keys."""
    if not (isinstance(own, Mapping) and isinstance(plain, Mapping)):
        yield f"{key}={own}"
        return
    for name in own:
        if name not in plain or own[name] != plain[name]:
            yield from _changes(f"{key}.{name}", own[name], plain.get(name))


def _check_file(key: str, path: Path) -> None:
    if not path.is_file():
        raise KDBenchError(f"{key}={path}: there is no such file")
