"""Trained models brought back as they are deployed: the plain student, or with what its method keeps at inference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from kdbench.base.weights import load_weights
from kdbench.needs import Artifact
from kdbench.plugin import Plugin, artifacts
from kdbench.task import Batch, Task
from kdbench.training.fit import Training, pick_device
from kdbench.training.history import Diverged
from kdbench.training.models import build_side
from kdbench.training.recipe import BEST, DEPLOYED, MODEL, Recipe


def load_artifact(
    recipe: Recipe, task: Task, folder: Path, batch: Batch | None = None, weights: str = MODEL, name: str = "student"
) -> Artifact:
    """Returns one of :func:`load_artifacts`; ``student`` is what the training is about."""
    return load_artifacts(recipe, task, folder, batch, weights, (name,))[name]


def load_artifacts(
    recipe: Recipe,
    task: Task,
    folder: Path,
    batch: Batch | None = None,
    weights: str = MODEL,
    names: Iterable[str] = ("student",),
) -> dict[str, Artifact]:
    """Builds what a recipe left, in eval mode, with the weights in a folder.

    Args:
        recipe: The training.
        task: The task.
        folder: Holds the weights, and ``deployed.safetensors`` where a method keeps more than the student (SimKD).
        batch: Any batch, from whose shapes a method makes its modules; the task's example by default.
        weights: File of the plain model.
        names: Which artifacts.
    """
    names = tuple(names)
    if all(spec.plugin.artifacts is Plugin.artifacts for spec in recipe.plugins.values()) and names == ("student",):
        members = len(recipe.files.get("init_from", ()))
        model = build_side(task, recipe.pair["student"]["architecture"], recipe.side, members)
        found = {"student": Artifact(model)}
    else:
        training = Training(recipe, task, untrained=True)
        training.distiller(training.stages[-1]).build(task.example() if batch is None else batch)
        left = artifacts(training.plugins.values(), training.cast.models())
        found = {name: left[name] for name in names}
    more = DEPLOYED if (folder / DEPLOYED).is_file() else weights
    for name, artifact in found.items():
        load_weights(artifact.module, folder / (more if name == "student" else f"{name}.safetensors"))
        artifact.module.eval()
    return found


def score(recipe: Recipe, task: Task, folder: Path, beside: Iterable[str] = ()) -> dict[str, Any]:
    """Scores what a training left on the test set.

    Args:
        recipe: The training.
        task: The task on its data.
        folder: Holds the weights.
        beside: Names of the artifacts that stand beside the model.

    Returns:
        Metrics of the model (``test``), of its epoch that was best on validation (``best_on_val``), and by name those
        of ``beside``.

    Raises:
        Diverged: The primary metric is undefined.
    """
    data, device = task.data(recipe.seed), pick_device(recipe.trainer["accelerator"])
    batch = next(iter(data.test_dataloader()), None)

    def scored(found: Artifact) -> dict[str, float]:
        place = torch.device(found.device or device)
        beside = {name: found.reads(loader) for name, loader in task.beside(data).items()}
        return task.evaluate(found.module.to(place), found.reads(data.test_dataloader()), "test", place, **beside)

    left = load_artifacts(recipe, task, folder, batch, names=("student", *beside))
    main = left.pop("student")
    test = on_val = scored(main)
    if task.primary not in test:
        raise Diverged(f"{task.primary} is undefined: the test set holds nothing to score")
    others = {name: scored(found) for name, found in left.items()}
    if (folder / BEST).is_file():
        load_weights(main.module, folder / BEST)
        on_val = scored(main)
    return {"test": test, "best_on_val": on_val, "beside": others}
