"""A mirror of a run on Weights & Biases (W&B), on demand.

The run record with its ``metrics.csv`` is the truth and W&B a copy of it, so nothing that W&B does or fails to do ends
a run: without a key or a server the run is kept offline (``wandb sync`` uploads it later), and an error is one warning.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kdbench.errors import KDBenchError, nearest

STEP = "trainer/global_step"
"""W&B's x axis, named as Lightning names it. W&B's own step restarts when a run is resumed offline."""

LOGGERS = ("csv", "wandb", "none")
"""``metrics.csv`` lies in every record, so ``csv`` and ``none`` ask for nothing more."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What a logger tells about the training that it follows.

    Attributes:
        task: The task's name, e.g. ``pointcloud``; likewise ``method`` and ``pair``.
        seed: The run's seed.
        stage: ``teacher``, ``scratch`` or ``student``; W&B's job type.
        spec_hash: Digest of the resolved config without the seed; W&B's group, so that seeds stand together.
        run_id: The record's id, the same for every stage of a run and for a resumed run.
        config: The resolved config as plain containers (``OmegaConf.to_container(cfg, resolve=True)``).
        tags: W&B's tags, e.g. the protocol's version.
        directions: For each logged metric that has a best value, whether higher is better.
    """

    task: str
    method: str
    pair: str
    seed: int
    stage: str
    spec_hash: str
    run_id: str
    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    directions: Mapping[str, bool] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name for people."""
        return f"{self.task}/{self.method}/{self.pair}/s{self.seed}"


class WandbLogger(Logger):
    """Mirrors one job, or one stage of it, to W&B as a run of its own.

    The run begins with the first thing logged and ends by `close`. Lightning's own W&B logger joins the run that is
    open in the process (each job of a sweep after the first) and switches the whole process to offline.

    Args:
        run: What the run is called.
        folder: Where W&B keeps its files (``folder/wandb``).
        project: W&B project.
        entity: W&B user or team; the key's default if None.
        mode: ``online``, ``offline``, ``disabled``, or None for ``$WANDB_MODE`` and else ``online``.
    """

    def __init__(
        self,
        run: RunInfo,
        folder: Path,
        *,
        project: str = "kdbench",
        entity: str | None = None,
        mode: str | None = None,
    ) -> None:
        super().__init__()
        self._info = run
        self._folder = folder
        self._project = project
        self._entity = entity
        self._mode = mode or os.environ.get("WANDB_MODE") or "online"
        self._run: Any = None
        self._warned = False

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return f"{self._info.run_id}-{self._info.stage}"

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, opened on first use."""
        if self._run is None:
            self._run = self._open()
        return self._run

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # W&B gets the resolved config when the run is opened

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._guarded():
            self.experiment.log({**metrics, STEP: step or 0})

    @rank_zero_only
    def publish(
        self,
        *,
        final: Mapping[str, float] | None = None,
        pictures: Mapping[str, Path] | None = None,
        media: Mapping[str, Callable[[ModuleType], Any]] | None = None,
        record: Path | None = None,
    ) -> None:
        """Sends what a finished run has to show.

        Args:
            final: Final scores by name; they go to the run's summary as ``final/<name>``.
            pictures: Image files by name.
            media: For each name a function from the ``wandb`` module to one of its objects, e.g. a 3-D point cloud
                with boxes: ``lambda wandb: wandb.Object3D({"type": "lidar/beta", "points": …, "boxes": …})``.
            record: The record's ``run.json``, kept as an artifact of type ``result``.
        """
        with self._guarded():
            import wandb

            self.experiment.summary.update({f"final/{name}": value for name, value in (final or {}).items()})
            shown = {name: wandb.Image(str(picture)) for name, picture in (pictures or {}).items()}
            shown |= {name: build(wandb) for name, build in (media or {}).items()}
            if shown:
                self.experiment.log(shown)
            if record:
                artifact = wandb.Artifact(f"result-{self._info.run_id}", type="result")
                artifact.add_file(str(record))
                self.experiment.log_artifact(artifact)

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        """Ends the W&B run; ``exit_code`` other than 0 marks it as failed."""
        with self._guarded():
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
        self._run = None

    def _open(self) -> Any:
        import wandb

        mode = self._mode
        if mode not in ("offline", "dryrun", "disabled") and (reason := offline_reason(wandb)):
            self._warn(f"{reason}; the run is kept offline in {self._folder / 'wandb'} (`wandb sync` uploads it)")
            mode = "offline"
        run = self._start(wandb, mode)
        if not run.offline:
            log.info("W&B: %s", run.url)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for name, higher in self._info.directions.items():
            run.define_metric(name, step_metric=STEP, step_sync=True, summary="max" if higher else "min")
        return run

    def _start(self, wandb: ModuleType, mode: str) -> Any:
        info = self._info
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            return wandb.init(
                project=self._project,
                entity=self._entity,
                dir=self._folder,
                id=self.version,
                name=info.name,
                group=info.spec_hash,
                job_type=info.stage,
                tags=list(info.tags),
                config={**info.config, "spec_hash": info.spec_hash},
                resume="allow",
                mode=mode,
                # A run of its own, whatever else is open in this process.
                reinit="create_new",
                # Output stays ours (a live progress bar is no log), and a dead network costs a bounded time.
                settings=wandb.Settings(console="off", silent=True, init_timeout=20, finish_timeout=60),
            )
        except Exception as error:
            if mode == "disabled":
                raise
            weaker = "disabled" if mode == "offline" else "offline"
            self._warn(f"{_one_line(error)}; the run goes on with W&B {weaker}")
            return self._start(wandb, weaker)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns any failure of W&B into one warning per run."""
        try:
            yield
        except Exception as error:
            self._warn(f"{_one_line(error)}; metrics.csv and the run record are complete without it")

    def _warn(self, text: str) -> None:
        if not self._warned:
            log.warning("W&B: %s", text)
        self._warned = True


def make_loggers(cfg: Mapping[str, Any], *, run: RunInfo, folder: Path) -> list[WandbLogger]:
    """Builds a run's Lightning loggers.

    Args:
        cfg: The config's ``logger`` node: ``name`` (``csv``, ``wandb`` or ``none``) and, for W&B, ``project``,
            ``entity`` and ``mode``.
        run: What the run is called.
        folder: Where W&B's own files go.

    Raises:
        KDBenchError: ``name`` is not a logger.
    """
    name = cfg["name"]
    if name not in LOGGERS:
        raise KDBenchError(f"logger={name} is unknown; {nearest(str(name), LOGGERS)}")
    if name != "wandb":
        return []
    return [WandbLogger(run, folder, **{key: cfg[key] for key in ("project", "entity", "mode") if cfg.get(key)})]


@contextmanager
def open_loggers(cfg: Mapping[str, Any], *, run: RunInfo, folder: Path) -> Iterator[list[WandbLogger]]:
    """`make_loggers` for the length of a job: the W&B run ends with it, also by an exception.

    Each job of a sweep therefore is a W&B run of its own, in one process too.
    """
    loggers = make_loggers(cfg, run=run, folder=folder)
    exit_code = 1
    try:
        yield loggers
        exit_code = 0
    finally:
        for logger in loggers:
            logger.close(exit_code)


def publish(loggers: Iterable[WandbLogger], **content: Any) -> None:
    """Calls `WandbLogger.publish` on each logger."""
    for logger in loggers:
        logger.publish(**content)


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
        return _one_line(error)
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


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
