"""Loggers beside ``metrics.csv``, which every record has: W&B by a mirror of its own, others by Lightning's classes.

Nothing that a logger does or fails to do ends a run, but a package that is not there does so at the start.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.base.instantiate import instantiate
from kdbench.errors import KDBenchError
from kdbench.mirror.wandb_run import RunInfo, one_line, summary
from kdbench.records.schema import Record

log = logging.getLogger(__name__)

#: What a Lightning logger is asked for while a run goes on.
_CALLS = ("log_hyperparams", "log_metrics", "save", "finalize")


_WITHOUT = "logger=%s: %s; metrics.csv and the run record are complete without it"


@contextmanager
def opened(options: Mapping[str, Any], info: RunInfo, results: Path) -> Iterator[list[Any]]:
    """Opens the loggers of a run for a block; they end with it.

    Args:
        options: ``logger`` of the configuration. Texts under ``options.options`` may name the run: ``{results}``,
            ``{task}``, ``{method}``, ``{run_id}``, ``{spec_hash}``, ``{name}``.
        info: What the run is called.
        results: The results folder.

    Raises:
        KDBenchError: The logger's package is not installed.
    """
    if options["name"] == "wandb":
        from kdbench.mirror.wandb_logger import open_logger

        with open_logger(options, run=info, folder=results / ".wandb" / info.run_id) as mirror:
            yield [mirror]
        return
    logger = _made(options, info, results) if options.get("_target_") else None
    if logger is None:
        yield []
        return
    status = "failed"
    try:
        yield [logger]
        status = "success"
    finally:
        logger.finalize(status)


def publish(
    logger: Any, record: Record, folder: Path, media: Mapping[str, Callable[[ModuleType], Any]] | None = None
) -> None:
    """Shows a finished run: to W&B all of its record, to others the final scores and the cost as numbers."""
    from kdbench.mirror.wandb_logger import WandbLogger

    if isinstance(logger, WandbLogger):
        logger.publish(record, folder, media)
        if record.status != "ok":
            logger.close(1)
        return
    numbers = {k: float(v) for k, v in summary(record).items() if isinstance(v, (int, float))}
    logger.log_metrics(numbers, record.cost.epochs if record.cost else 0)


def _made(options: Mapping[str, Any], info: RunInfo, results: Path) -> Any:
    facts = {
        "results": str(results.absolute()),
        "task": str(info.config["task"]["name"]),
        "method": str(info.config["method"]["name"]),
        "run_id": info.run_id,
        "spec_hash": info.spec_hash,
        "name": info.name,
    }
    for name, value in (options.get("env") or {}).items():
        os.environ.setdefault(name, str(value))
    given = {key: _filled(value, facts) for key, value in (options.get("options") or {}).items()}
    try:
        logger = instantiate("logger.options", {"_target_": options["_target_"], **given})
    except ModuleNotFoundError:
        install = options.get("install") or options["name"]
        raise KDBenchError(f"logger={options['name']}: its package is not installed: pip install {install}") from None
    except KDBenchError:
        raise
    except Exception as error:
        log.warning(_WITHOUT, options["name"], one_line(error))
        return None
    warned: list[str] = []
    for name in _CALLS:
        setattr(logger, name, _guarded(getattr(logger, name), options["name"], warned))
    logger.log_hyperparams({**info.config})
    if warned:  # it cannot be opened, and Lightning would ask it for more
        return None
    return logger


def _filled(value: Any, facts: Mapping[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    return functools.reduce(lambda text, fact: text.replace(f"{{{fact}}}", facts[fact]), facts, value)


def _guarded(call: Callable[..., Any], name: str, warned: list[str]) -> Callable[..., Any]:
    """Turns any failure of a logger into one warning per run."""

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not warned:
                warned.append(one_line(error))
                log.warning(_WITHOUT, name, warned[0])

    return guarded
