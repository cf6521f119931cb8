"""Recorded runs read again: their configuration, their task, and what they left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdbench.base.digest import digest
from kdbench.base.instantiate import locate
from kdbench.configuration.resolved import make_task, resolve, store_of
from kdbench.errors import KDBenchError, nearest
from kdbench.needs import Artifact
from kdbench.records.record import CONFIG, read_record
from kdbench.records.schema import Record
from kdbench.runs.trainings import Trainings
from kdbench.task import Batch, DatasetInfo, Task
from kdbench.training.recipe import Recipe
from kdbench.training.trained import load_artifact


@dataclass(frozen=True)
class RecordedRun:
    """A run that is on the disk.

    Attributes:
        folder: Of its record.
        record: Its content.
        config: As it was resolved.
        task: Its task, which takes what the record says of the data and opens none.
        side: What it left behind: ``student``, or ``teacher`` where that was trained alone.
        recipe: How that was trained.
    """

    folder: Path
    record: Record
    config: Mapping[str, Any]
    task: Task
    side: str
    recipe: Recipe

    def changed(self) -> str | None:
        """Says in one line where the data of the run are on this machine and are not what they were."""
        root, told = self.config["data"].get("root"), self.record.dataset
        if not root or not Path(root).expanduser().is_dir() or told is None:
            return None
        try:
            found = make_task(self.config, store_of(self.config)).dataset().digest
        except KDBenchError as error:
            return f"the data are not those of the run: {error}"
        if found == told.digest:
            return None
        classes = "those of today, as its record is of schema version 1" if told.classes is None else "the record's"
        return f"data.root={root} is not what it was: digest {found}, in the run {told.digest}; classes are {classes}"

    def called(self, name: str) -> str:
        """Returns what the record calls an artifact; ``student`` is what was trained, a teacher too."""
        return self.side if name == "student" else name if self.side == "student" else f"{self.side}_{name}"

    def artifact(self, name: str = "student", batch: Batch | None = None) -> Artifact:
        """Returns what the run left, as :func:`~kdbench.training.trained.load_artifact` does.

        Raises:
            KDBenchError: It left nothing of that name.
        """
        beside = self.record.scores.keys() - {"student", "teacher", "scratch"}
        left = ["student", *(n for n in sorted(beside) if (self.folder / f"{n}.safetensors").is_file())]
        if name not in left:
            raise KDBenchError(f"{self.folder} has no artifact {name!r}: {nearest(name, dict.fromkeys(left))}")
        return load_artifact(self.recipe, self.task, self.folder, batch, f"{self.side}.safetensors", name)


def read_run(run: Path, options: Sequence[str] = ()) -> RecordedRun:
    """Reads what a run left behind.

    Args:
        run: Folder of a record, or its ``run.json``.
        options: Keys of ``data`` (``data.scan.columns=5``) that differ for the inputs that will be read.

    Raises:
        KDBenchError: The record or its configuration cannot be read, it failed, or the two are not of one run.
    """
    record = read_record(run)
    folder = run if run.is_dir() else run.parent
    if record.status != "ok":
        raise KDBenchError(f"{folder} is a run that {record.status} ({record.reason}): it has no student")
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise KDBenchError(f"{folder / CONFIG}: cannot be read: {' '.join(str(error).split())}") from None
    if digest(config) != record.provenance.config_digest:  # it names the classes that are built
        raise KDBenchError(f"{folder / CONFIG}: this is not the configuration of the run: it was edited")
    config["data"] = _as_of_today(config)
    # All weights are in the folder, and what the networks once started from may be gone.
    parts = {side: {**config[side], "init_from": None} for side in ("student", "teacher")}
    parts["teacher"] |= {"answers": None, "data": {}, "replay": None, "augment": {}}
    resolved, data = resolve({**_with(config, options), **parts}), record.dataset
    # A record of schema version 1 does not say it: its task opens the data of today.
    if data is not None and data.inputs is not None:
        resolved.task.restore(DatasetInfo(**dict(data) | {"sizes": dict(data.sizes)}))
    recipe = Trainings(resolved).main_recipe
    side = "student" if "student" in record.scores else "teacher"
    return RecordedRun(folder, record, config, resolved.task, side, recipe)


def _as_of_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``data`` of a recorded configuration with the names that the task's keys have since been given."""
    task: Any = locate(config["task"]["_target_"])
    return {task.renamed.get(key, key): value for key, value in config["data"].items()}


def _with(config: Mapping[str, Any], options: Sequence[str]) -> Mapping[str, Any]:
    """Returns a configuration with other values in ``data``; the task knows which keys there are."""
    foreign = next((option for option in options if not re.match(r"data\.[\w.]+=", option)), None)
    if foreign is not None:
        raise KDBenchError(f"--set {foreign}: expected a key of data that says how inputs are read, as data.KEY=VALUE")
    try:
        merged: Any = OmegaConf.to_container(OmegaConf.merge(config, OmegaConf.from_dotlist(list(options))))
    except (OmegaConfBaseException, YAMLError) as error:
        raise KDBenchError(f"--set {' '.join(options)}: {' '.join(str(error).split())}") from None
    return {**config, "data": merged["data"]}
