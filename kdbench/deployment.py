"""Trained models brought back as they are deployed: the plain student, or with what its method keeps at inference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdbench.distiller import deploy
from kdbench.fit import Training
from kdbench.recipe import DEPLOYED, MODEL, Recipe
from kdbench.task import Batch, Task
from kdbench.weights import load_weights


def load_deployed(
    config: Mapping[str, Any], task: Task, side: str, folder: Path, batch: Batch, weights: str = MODEL
) -> nn.Module:
    """Builds a side of the pair, in eval mode, with the weights in a folder.

    Args:
        config: The resolved configuration.
        task: The task.
        side: ``student`` or ``teacher``.
        folder: Holds the weights, and ``deployed.safetensors`` where a method keeps more than the student (SimKD).
        batch: Any batch: methods make their modules from the shapes that they see on it.
        weights: File of the plain model.
    """
    if side == "student" and (folder / DEPLOYED).is_file():
        plugins = {o: config[o] for o in ("augment", "quant", "method") if config[o].get("_target_")}
        recipe = Recipe("student", "student", config, plugins, int(config["seed"]), "", teacher="")
        training = Training(recipe, task, untrained=True)
        training.distiller(training.stages[-1]).build(batch)
        model = deploy(training.cast.model("student"), training.plugins.values())
        load_weights(model, folder / DEPLOYED)
    else:
        model = task.build(config["pair"][side]["architecture"])
        load_weights(model, folder / weights)
    return model.eval()
