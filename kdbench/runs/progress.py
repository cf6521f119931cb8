"""What a person sees while a run works: one live bar for each training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from kdbench.base.terminal import decimals, text_column

if TYPE_CHECKING:
    from kdbench.training.distiller import Distiller


class Bar(Callback):
    """A live bar with stage, epoch, loss and validation metric; on a pipe, one line an epoch.

    Args:
        stage: Shown in front.
        metric: Name of the validation metric shown.
        console: Where to draw.
        interval: Seconds between redraws of the loss, which waits for the device.
    """

    def __init__(self, stage: str, metric: str, console: Console, interval: float = 1.0) -> None:
        self.stage = stage
        self.metric = metric
        self.console = console
        self.interval = interval
        self._bar: Progress | None = None
        self._row: Any = None
        self._value = ""
        self._drawn = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._bar = Progress(
            text_column("{task.description}", "bold"),
            BarColumn(bar_width=24),
            text_column("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar.start()
        steps = int(trainer.num_training_batches) * int(trainer.max_epochs or 1)
        done = trainer.current_epoch * int(trainer.num_training_batches)
        self._row = self._bar.add_task(self.stage, total=steps, completed=done, status="")

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert self._bar is not None
        if self._bar.disable or time.monotonic() - self._drawn < self.interval:
            return
        self._drawn = time.monotonic()
        done = trainer.current_epoch * int(trainer.num_training_batches) + index + 1
        self._bar.update(self._row, completed=done, status=self._status(trainer, module))

    def _status(self, trainer: Trainer, module: LightningModule) -> str:
        distiller: Distiller = module  # type: ignore[assignment]
        means = distiller.term_means()
        terms = " ".join(f"{name} {value:.3g}" for name, value in means.items())
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} · {terms}{self._value}"

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert self._bar is not None
        distiller: Distiller = module  # type: ignore[assignment]
        if self.metric in distiller.validation:
            value = distiller.validation[self.metric]
            self._value = f" · val {self.metric} {value:.{decimals(value)}f}"
        elif self._bar.disable:
            self._value = ""  # a line is about its epoch, a live bar about the training
        if self._bar.disable:
            self.console.print(f"{self.stage}: {self._status(trainer, module)}", soft_wrap=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
