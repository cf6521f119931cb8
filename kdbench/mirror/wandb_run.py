"""A run on Weights & Biases (W&B): what it is called, and what it is sent.

The run record with its ``metrics.csv`` is the truth and W&B a copy of it.
"""

from __future__ import annotations

import csv
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.base.digest import digest
from kdbench.records.record import RUN, content_hash
from kdbench.records.schema import Record

STEP = "trainer/global_step"
"""W&B's x axis, named as Lightning names it. W&B's own step restarts when a run is resumed offline."""

FINISH_S = 60
"""Seconds that a run's end waits for W&B to send what it has; the rest stays in the offline file."""

CONTENT = "content_hash"
"""Key of the summary that tells which record a W&B run holds whole."""


@dataclass(frozen=True)
class RunInfo:
    """What a logger tells about the run that it follows.

    Attributes:
        run_id: The record's id, which is W&B's too, so that a run that is resumed or pushed again stays one.
        spec_hash: Digest of the resolved config without the seed; W&B's group, so that seeds stand together.
        name: The run's name for people.
        job_type: ``distill``, ``scratch`` or ``teacher``.
        tags: Task, method, preset, protocol.
        config: The resolved config with ``spec_hash``, ``protocol`` and ``teacher_hash``, as plain containers.
        directions: For each logged metric that has a best value, whether higher is better.
    """

    run_id: str
    spec_hash: str
    name: str
    job_type: str
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: Mapping[str, Any], *, run_id: str, spec_hash: str, directions: Mapping[str, bool] | None = None
    ) -> RunInfo:
        """Describes the run of a resolved config."""
        task, method, pair, preset = (str(config[group]["name"]) for group in ("task", "method", "pair", "preset"))
        protocol = str(Record.model_fields["protocol"].default)
        alone = {"teacher": "teacher", "student": "scratch", None: "scratch"}[config["role"]]
        return cls(
            run_id=run_id,
            spec_hash=spec_hash,
            name=f"{task}/{method}/{pair}/s{config['seed']}",
            job_type="distill" if "_target_" in config["method"] else alone,
            tags=(task, method, preset, f"protocol-{protocol}"),
            config={**config, "spec_hash": spec_hash, "protocol": protocol, "teacher_hash": teacher_hash(config)},
            directions=directions or {},
        )


def teacher_hash(config: Mapping[str, Any]) -> str:
    """Digests the recipe of the pair's teacher, the same for all runs whose students learn from one teacher."""
    own = config["teacher"]
    data = {k: v for k, v in (own["data"] or config["data"]).items() if k not in ("root", "workers")}
    trainer = {k: v for k, v in {**config["trainer"], **own["trainer"]}.items() if k != "threads"}
    return digest([config["task"], config["pair"]["teacher"], data, trainer, own["seed"], own["init_from"]])


def start(info: RunInfo, folder: Path, *, project: str, entity: str | None, mode: str | None, **settings: Any) -> Any:
    """Opens the W&B run of a training, which joins no other run that is open in this process.

    Args:
        info: What the run is called.
        folder: Where W&B keeps its files.
        project: W&B project.
        entity: W&B user or team.
        mode: ``online``, ``offline`` or ``disabled``.
        settings: More of ``wandb.Settings``.
    """
    import wandb

    if mode != "disabled":
        folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        entity=entity,
        dir=folder,
        id=info.run_id,
        name=info.name,
        group=info.spec_hash,
        job_type=info.job_type,
        tags=list(info.tags),
        config=dict(info.config),
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        # Output stays ours (a live progress bar is no log), and a dead network costs a bounded time.
        settings=wandb.Settings(console="off", silent=True, init_timeout=20, finish_timeout=FINISH_S, **settings),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    for name, higher in info.directions.items():
        run.define_metric(name, step_metric=STEP, step_sync=True, summary="max" if higher else "min")
    return run


def send(
    run: Any,
    info: RunInfo,
    record: Record,
    folder: Path,
    media: Mapping[str, Callable[[ModuleType], Any]] | None = None,
) -> None:
    """Sends what a finished run has to show to its W&B run.

    These are its final scores in the summary (``final/<metric>`` of the model that the run is about, and
    ``final/<role>/<primary>``), tables of all scores and of those by class, the pictures, the record as an artifact of
    type ``result``, and at last the record's content hash, which tells that all of it is there.

    Args:
        run: The ``wandb.Run``.
        info: What the run is called.
        record: The run's record.
        folder: The record's folder.
        media: For each name a function from the ``wandb`` module to one of its objects, e.g. a 3-D point cloud with
            boxes: ``lambda wandb: wandb.Object3D({"type": "lidar/beta", "points": …, "boxes": …})``.
    """
    import wandb

    run.summary.update(summary(record))
    artifact = wandb.Artifact(f"result-{record.run_id}", type="result", metadata={"teacher": teacher_hash(info.config)})
    artifact.add_file(str(folder / RUN))
    run.log_artifact(artifact)
    shown: dict[str, Any] = {
        name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        for name, rows in (("scores", score_rows(record)), ("by_class", class_rows(record, info.config)))
        if rows
    }
    # The preview, and what plugins drew.
    shown |= {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
    shown |= {name: build(wandb) for name, build in (media or {}).items()}
    if shown:
        run.log(shown)
    run.summary[CONTENT] = content_hash(record)


def summary(record: Record) -> dict[str, Any]:
    """Returns what a W&B summary holds of a record."""
    values: dict[str, Any] = {"status": record.status, "gap_closed": record.gap_closed, "reason": record.reason}
    main = record.scores.get("student") or record.scores.get("teacher")
    if main is not None and record.primary is not None:
        values |= {f"final/{name}": value for name, value in main.test.items()}
        values |= {f"final/{r}/{record.primary.name}": s.test[record.primary.name] for r, s in record.scores.items()}
    if record.cost is not None:
        values |= {f"cost/{name}": value for name, value in record.cost}
    return {name: value for name, value in values.items() if value is not None}


def score_rows(record: Record) -> list[dict[str, Any]]:
    """Returns one row for each metric on the test set, with a column for each role."""
    roles = {role: scores.test for role, scores in record.scores.items()}
    names = dict.fromkeys(name for test in roles.values() for name in test)
    return [{"metric": name} | {role: test.get(name) for role, test in roles.items()} for name in names]


def class_rows(record: Record, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one row for each class and role; a column for each metric that the task names ``<class>_<metric>``."""
    rows = []
    for role, scores in record.scores.items():
        for name in config["task"].get("classes") or ():
            prefix = f"{name.lower()}_"
            own = {k.removeprefix(prefix): v for k, v in scores.test.items() if k.startswith(prefix)}
            rows += [{"class": name, "role": role} | own] if own else []
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def replay(history: Path, log_metrics: Callable[[dict[str, float], int], None], after: float = -1) -> None:
    """Logs the epochs of a training that was done earlier.

    Args:
        history: Its ``metrics.csv``.
        log_metrics: Takes the values of an epoch and its last step.
        after: Epochs up to this step are there already.
    """
    with history.open(newline="") as stream:
        for row in csv.DictReader(stream):
            values = {key: float(value) for key, value in row.items() if value}
            if values["step"] > after:
                log_metrics(values, int(values["step"]))


def offline_reason(wandb: ModuleType, timeout: float = 2.0) -> str | None:
    """Says why a W&B run cannot be online now, or None.

    ``wandb.init`` itself would ask for a key on a terminal and wait 105 s for a server that is not there.

    Args:
        wandb: The module.
        timeout: Seconds to wait for any answer from the server.
    """
    url = str(wandb.setup().settings.base_url)
    if not _answers(url, timeout):
        return f"no answer from {url} within {timeout:g} s"
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        return one_line(error)
    return None if found else "no API key (`wandb login` or WANDB_API_KEY)"


def _answers(url: str, timeout: float) -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError) as error:
            # A certificate that Python does not trust is an answer too; wandb has its own trust store.
            if isinstance(getattr(error, "reason", error), ssl.SSLError):
                answered.set()

    # In a thread, because looking up a host name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def one_line(error: Exception) -> str:
    """Returns the kind and the text of an error, short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
