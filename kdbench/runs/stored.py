"""What a trained network says or writes once, kept for the trainings that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.base import rng
from kdbench.base.digest import digest, source_digest
from kdbench.base.store import Product, Store
from kdbench.configuration.resolved import PluginSpec, make_task
from kdbench.errors import KDBenchError
from kdbench.training.recipe import WRITTEN, Recipe, Replay, Written

if TYPE_CHECKING:
    from kdbench.task import Task


def answers(
    store: Store, task: Task, replay: Replay, weights: Path, features: Iterable[str], limit: float
) -> dict[str, Path]:
    """Returns the folders of a network's stored features; those that are not there are made in one pass.

    Args:
        store: Where they are kept.
        task: The task on the data of the student.
        replay: Whose answers, and to how many views.
        weights: Of the network.
        features: By name.
        limit: Most bytes in all, GB.
    """
    keys = {name: replay.of(name) for name in features}

    def make(left: Sequence[str], folders: dict[str, Path], manifests: dict[str, dict[str, Any]]) -> None:
        """Locks what is absent one after another, in an order that all processes keep, and fills it together."""
        if not left:
            from kdbench.training.answering import answer

            data: Any = task.data(0).train_dataloader()
            manifests |= answer(replay, task, weights, data, folders, limit)
            return
        name, *others = left

        def job(work: Path) -> dict[str, Any]:
            make(others, {**folders, name: work}, manifests)
            return manifests[name]

        message = f"the answers of the {replay.source.name} of {task.name}"
        store.product("answers", keys[name], job, wait_message=message)

    def found() -> dict[str, Path]:
        made = {name: store.find("answers", key) for name, key in keys.items()}
        return {name: product.path for name, product in made.items() if product is not None}

    while absent := sorted(keys.keys() - found().keys(), key=keys.__getitem__):
        make(absent, {}, {})
    return found()


def asked(config: Mapping[str, Any], task: Task, plugins: Iterable[PluginSpec], distils: bool) -> bool:
    """Says whether the student learns from what the teacher writes (``teacher.corpus``).

    Args:
        config: Of the run.
        task: On the data of the student.
        plugins: Of the run.
        distils: Whether a method distils the student.

    Raises:
        KDBenchError: It cannot, or a method cannot do without.
    """
    teacher = config["teacher"]
    if not teacher.get("corpus"):
        lacking = next((spec.given["name"] for spec in plugins if spec.plugin.corpus), None)
        if lacking:
            raise KDBenchError(f"{lacking} learns from what the teacher writes: teacher.corpus.texts=N")
        return False
    if "writes" not in task.capabilities:
        raise KDBenchError(f"teacher.corpus: a network of task {task.name} on these data writes none: leave it out")
    if not distils:
        raise KDBenchError("teacher.corpus goes with a method; data.corpus=DIR gives a student alone what was written")
    if teacher["replay"] or teacher["answers"]:
        raise KDBenchError("teacher.corpus takes a teacher that runs: leave out teacher.replay and teacher.answers")
    return True


def corpus(store: Store, task: Task, written: Written, weights: Callable[[Recipe], Path], recipe: Recipe) -> Path:
    """Returns the folder of what a network wrote for a training, as the plugins of that choose from it.

    Args:
        store: Where it is kept, with who wrote it and how.
        task: The task on the data of the student.
        written: Who writes, and how.
        weights: Finds those of the product of a recipe.
        recipe: Of the training that reads it.

    Raises:
        KDBenchError: Nothing was kept.
    """

    def job(work: Path) -> dict[str, Any]:
        from safetensors.torch import save_file

        found = _write(written, task, weights(written.source))
        save_file(found, work / WRITTEN)
        count = len(found["tokens"])
        facts = {"samples": count, "written": count, "tokens": int(found["tokens"].sum())}
        return {**facts, "options": dict(written.options), "writer": written.source.key, "data": written.dataset}

    message = f"what the {written.source.name} of {task.name} writes"
    product = store.product("corpus", written.key, job, wait_message=message)
    for spec in recipe.plugins.values():
        product = _chosen(store, task, product, spec, written.options["seed"])
    return product.path


def _write(written: Written, task: Task, weights: Path) -> dict[str, Any]:
    import torch

    from kdbench.base.weights import load_weights
    from kdbench.training.fit import pick_device
    from kdbench.training.models import build_side
    from kdbench.training.processes import threads

    source, trainer, options = written.source, written.config["trainer"], written.options
    model = build_side(task, source.pair["student"]["architecture"], source.side, len(source.starts))
    load_weights(model, weights)
    generator = rng.generator(options["seed"], "corpus")
    with threads(trainer["threads"], 1), torch.no_grad():
        model = model.to(pick_device(trainer["accelerator"])).eval()
        found = task.ops()["write"](model, options["texts"], generator, options["temperature"])
    return {name: value.contiguous().cpu() for name, value in found.items()}


def _chosen(store: Store, task: Task, product: Product, spec: PluginSpec, seed: int) -> Product:
    """Returns the samples of a corpus that a plugin chooses, as a corpus of their own."""
    from kdbench.plugin import Plugin

    if spec.plugin.chosen is Plugin.chosen:
        return product

    def job(work: Path) -> dict[str, Any]:
        from safetensors.torch import load_file, save_file

        found = load_file(product.path / WRITTEN)
        kept = spec.make().chosen(found, task, seed)
        if kept is not None:
            found = {name: value[kept].contiguous() for name, value in found.items()}
        count = len(found["tokens"])
        if not count:
            name, written = spec.given["name"], product.manifest["written"]
            raise KDBenchError(f"{spec.owner}={name} keeps none of the {written} samples that were written: keep more")
        save_file(found, work / WRITTEN)
        same = {name: product.manifest[name] for name in ("written", "tokens", "options", "writer", "data")}
        return {**same, "samples": count, "chosen": dict(spec.given)}

    code = source_digest([spec.plugin.__module__])
    key = digest([product.manifest["key"], product.manifest["created"], dict(spec.given), code])
    return store.product("corpus", key, job, wait_message="what is kept of what was written")


def reading(config: Mapping[str, Any], store: Store, folder: Path, beside: bool) -> Task:
    """Returns the task of a configuration whose training samples are those in the folder of a corpus.

    Args:
        config: Of the training.
        store: Where products live.
        folder: Of the corpus.
        beside: Whether they stand beside those of the data set.
    """
    data = {**config["data"], "corpus": str(folder), "beside": beside}
    return make_task({**config, "data": data}, store)
