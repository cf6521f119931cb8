"""A mirror of a run on Weights & Biases (W&B), on demand.

Nothing that W&B does or fails to do ends a run: without a key or a server the run is kept offline (``wandb sync``
uploads it later, ``python -m kdbench.wandb_sync`` any record), and an error is one warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kdbench.mirror.wandb_run import STEP, RunInfo, offline_reason, one_line, send, start
from kdbench.records.schema import Record

log = logging.getLogger(__name__)


class WandbLogger(Logger):
    """Mirrors one job, or one stage of it, to W&B as a run of its own.

    The run begins with the first thing logged and ends by `close`. Lightning's own W&B logger joins the run that is
    open in the process (each job of a sweep after the first) and switches the whole process to offline.

    Args:
        run: What the run is called.
        folder: Where W&B keeps its files (``folder/wandb``).
        project: W&B project.
        entity: W&B user or team; the key's default if None.
        mode: ``online``, ``offline``, ``disabled``, or None for ``$WANDB_MODE`` and else ``offline``.
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
        self._mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self._run: Any = None
        self._warned = False
        self._broken = False

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self._info.run_id

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, opened on first use; None where it cannot be. Lightning asks for it outside any guard."""
        if self._run is None and not self._broken:
            self._broken = True
            with self._guarded():
                self._run = self._open()
                self._broken = False
        return self._run

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # W&B gets the resolved config when the run is opened

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._guarded():
            if run := self.experiment:
                run.log({**metrics, STEP: step or 0})

    @rank_zero_only
    def publish(
        self, record: Record, folder: Path, media: Mapping[str, Callable[[ModuleType], Any]] | None = None
    ) -> None:
        """Sends what a finished run has to show, see `send`."""
        with self._guarded():
            if run := self.experiment:
                send(run, self._info, record, folder, media)

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
        return run

    def _start(self, wandb: ModuleType, mode: str) -> Any:
        try:
            return start(self._info, self._folder, project=self._project, entity=self._entity, mode=mode)
        except Exception as error:
            if mode == "disabled":
                raise
            weaker = "disabled" if mode == "offline" else "offline"
            self._warn(f"{one_line(error)}; the run goes on with W&B {weaker}")
            return self._start(wandb, weaker)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns any failure of W&B into one warning per run."""
        try:
            yield
        except Exception as error:
            self._warn(f"{one_line(error)}; metrics.csv and the run record are complete without it")

    def _warn(self, text: str) -> None:
        if not self._warned:
            log.warning("W&B: %s", text)
        self._warned = True


@contextmanager
def open_logger(options: Mapping[str, Any], *, run: RunInfo, folder: Path) -> Iterator[WandbLogger]:
    """Mirrors a run for the length of a job: the W&B run ends with it, also by an exception.

    Each job of a sweep therefore is a W&B run of its own, in one process too.

    Args:
        options: ``project``, ``entity`` and ``mode``, where they are set.
        run: What the run is called.
        folder: Where W&B's own files go.
    """
    logger = WandbLogger(run, folder, **{k: options[k] for k in ("project", "entity", "mode") if options.get(k)})
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    finally:
        logger.close(exit_code)
