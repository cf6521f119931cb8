"""The history of a training: metrics by epoch, checkpoints, and what a resumed training continues from."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from kdbench.base import endings
from kdbench.base.store import write_atomic
from kdbench.base.weights import save_weights
from kdbench.errors import KDBenchError
from kdbench.training.recipe import BEST

if TYPE_CHECKING:
    from kdbench.training.distiller import Distiller


class Diverged(KDBenchError):
    """A loss, or what a plugin learns, is not finite."""


class History(Callback):
    """Keeps one row an epoch, the last checkpoint and the student that was best on validation.

    Its state is part of the checkpoint, so that an interrupted training leaves the rows of an uninterrupted one.

    Args:
        folder: Where ``last.ckpt`` and ``best.safetensors`` go.
        before: History of the stage before.
        higher_is_better: Direction of ``metric``.
        metric: Name of the validation metric that picks the best epoch.
    """

    def __init__(
        self,
        folder: Path | None = None,
        before: History | None = None,
        higher_is_better: bool = True,
        metric: str = "",
    ) -> None:
        self.folder = folder
        self.metric = metric
        self.sign = 1.0 if higher_is_better else -1.0
        self.rows: list[dict[str, float]] = list(before.rows) if before else []
        self.passes: dict[str, int] = dict(before.passes) if before else {}
        self.tokens: dict[str, int] = dict(before.tokens) if before else {}
        self.samples: int = before.samples if before else 0
        self.wall: float = before.wall if before else 0.0
        self.moving: list[str] = list(before.moving) if before else []
        self._steps = int(before.rows[-1].get("step", 0)) if before and before.rows else 0
        self.best = -math.inf
        self.best_epoch = -1
        self._started = 0.0

    @property
    def epochs(self) -> int:
        """Epochs so far, over all stages."""
        return len(self.rows)

    @property
    def last_validation(self) -> dict[str, float]:
        """Validation metrics after the last epoch, if it was validated."""
        row = self.rows[-1] if self.rows else {}
        return {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}

    def terms(self) -> dict[str, dict[str, float]]:
        """Returns the mean of each term in its first and last epoch, with the last weight."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows:
            for key, value in row.items():
                if key.startswith("train/"):
                    name = key.removeprefix("train/")
                    entry = found.setdefault(name, {"first": value})
                    entry["last"] = value
                    entry["weight"] = row.get(f"weight/{name}", 1.0)
        return found

    def idle(self) -> list[str]:
        """Returns flags of the terms that have a weight and did nothing in the whole training.

        ``zero_term:<term>`` was exactly zero in every step. ``no_gradient:<term>`` was one and the same number in every
        epoch, and its gradient on the first batch was exactly zero.
        """
        values: dict[str, set[float]] = {}
        for row in self.rows:
            for key, value in row.items():
                name = key.removeprefix("train/")
                if key.startswith("train/") and row.get(f"weight/{name}", 1.0) and name.split(".")[0] != "task":
                    values.setdefault(name, set()).add(value)
        flags = []
        for name, seen in values.items():
            if seen == {0.0}:
                flags.append(f"zero_term:{name}")
            elif len(seen) == 1 and name not in self.moving:
                flags.append(f"no_gradient:{name}")
        return flags

    def write(self, path: Path) -> None:
        """Writes the rows as CSV."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "passes": self.passes,
            "tokens": self.tokens,
            "samples": self.samples,
            "wall": self.wall + time.monotonic() - self._started,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "moving": self.moving,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        endings.claim()  # Lightning's handler of SIGTERM waits for the batch, and for the other processes
        self._started = time.monotonic()
        distiller: Distiller = module  # type: ignore[assignment]
        self.moving += sorted(distiller.moving.difference(self.moving))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.wall += time.monotonic() - self._started

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Adds the row of this epoch and saves; a loss that is not finite ends the training."""
        distiller: Distiller = module  # type: ignore[assignment]
        assert self.folder is not None and distiller.plan is not None
        means = distiller.term_means()
        learned = {
            f"{owner}/{n}": value for owner, plugin in distiller.owned() for n, value in plugin.readings().items()
        }
        found = {f"term {name!r}": value for name, value in means.items()} | learned
        bad = next((name for name, value in found.items() if not math.isfinite(value)), None)
        if bad is not None:
            raise Diverged(f"{bad} is not finite in epoch {trainer.current_epoch}: lower the learning rate")
        progress = (trainer.current_epoch + 1) / max(1, trainer.max_epochs or 1)
        row: dict[str, float] = {
            "epoch": len(self.rows),
            "step": self._steps + trainer.global_step,
            "lr": distiller.lr(),
        }
        row |= {f"train/{name}": value for name, value in means.items()}
        row |= {f"weight/{n}": s.at(progress) for n, s in distiller.plan.schedules.items() if n in means}
        row |= learned
        if distiller.validation:
            row |= {f"val/{name}": value for name, value in distiller.validation.items()}
            score = self.sign * distiller.validation.get(self.metric, -self.sign * math.inf)
            if score > self.best:
                self.best, self.best_epoch = score, len(self.rows)
                if trainer.is_global_zero:
                    save_weights(distiller.deployed().module, self.folder / BEST)
            distiller.validation = {}
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, int(row["step"]))
        for counted, seen in ((self.passes, distiller.cast.passes), (self.tokens, distiller.cast.tokens)):
            for role, count in seen.items():
                counted[role] = counted.get(role, 0) + count
            seen.clear()
        self.samples += distiller.samples
        distiller.samples = 0
        aside = self.folder / f".last.{os.getpid()}.tmp"
        trainer.save_checkpoint(aside, weights_only=False)
        if trainer.is_global_zero:
            aside.replace(self.folder / "last.ckpt")
        # To trainer.callback_metrics, from which EarlyStopping, ModelCheckpoint and the like read.
        shown = {name: value for name, value in row.items() if name.startswith(("train/", "val/"))}
        module.log_dict(shown, logger=False, batch_size=1)
