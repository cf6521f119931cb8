"""Trained models brought back as they are deployed: the plain student, or with what its method keeps at inference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.base.outcomes import OUTCOMES, Outcomes, named, pack
from kdbench.base.weights import load_weights
from kdbench.errors import KDBenchError
from kdbench.needs import Artifact
from kdbench.plugin import Plugin, artifacts
from kdbench.task import Batch, Task, move
from kdbench.training.fit import Training, pick_device
from kdbench.training.history import Diverged
from kdbench.training.models import build_side
from kdbench.training.recipe import BEST, DEPLOYED, MODEL, Recipe

#: How far sums in single precision may be from each other.
NEAR = 1e-4


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


def score(
    recipe: Recipe, task: Task, folder: Path, beside: Iterable[str] = (), work: Path | None = None
) -> dict[str, Any]:
    """Scores what a training left on the test set.

    Args:
        recipe: The training.
        task: The task on its data.
        folder: Holds the weights.
        beside: Names of the artifacts that stand beside the model.
        work: Where :data:`~kdbench.base.outcomes.OUTCOMES` of the model goes, of a task whose metric is told from them.

    Returns:
        Metrics of the model (``test``), of its epoch that was best on validation (``best_on_val``), and by name those
        of ``beside``.

    Raises:
        Diverged: The primary metric is undefined.
        KDBenchError: It is not what the contributions of the samples make.
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
    told = task.aim or task.primary
    if told not in test:
        raise Diverged(f"{told} is undefined: the test set holds nothing to score")
    if work is not None and task.metric_law:
        found = outcomes(task, main, data.test_dataloader(), torch.device(main.device or device))
        own = found.score("model")
        if not math.isclose(own, test[task.primary], rel_tol=NEAR, abs_tol=NEAR):
            said = f"task {task.name}: its metric_law {task.metric_law!r} makes {own:.6g} of what samples contribute"
            raise KDBenchError(f"{said}, {task.primary} is {test[task.primary]:.6g}")
        content = pack(found)
        if content is not None:
            (work / OUTCOMES).write_bytes(content)
    others = {name: scored(found) for name, found in left.items()}
    if (folder / BEST).is_file():
        load_weights(main.module, folder / BEST)
        on_val = scored(main)
    return {"test": test, "best_on_val": on_val, "beside": others}


@torch.no_grad()
def outcomes(task: Task, found: Artifact, loader: Iterable[Batch], device: torch.device) -> Outcomes:
    """Returns what each sample of a loader contributes to the primary metric of a model, called ``model``."""
    values, ids = [], []
    model = found.module.to(device).eval()
    for batch in found.reads(loader):
        batch = move(batch, device)
        values.append(task.contributions(task.forward(model, batch.inputs), batch).double().cpu().numpy())
        ids += batch.ids.tolist()
    return Outcomes(task.metric_law, named(ids), {"model": np.concatenate(values)})
