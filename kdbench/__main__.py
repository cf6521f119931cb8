"""The command line: ``python -m kdbench task=pointcloud method=pointdistiller``."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from kdbench.base.startup import lenient_output, own_imports, uncollected

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig


def main() -> None:
    """Runs one job, or with ``-m`` a sweep; exits with 0 only if every job ends with status ok."""
    lenient_output()
    own_imports()
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from kdbench.base import endings
    from kdbench.configuration import config as configuration
    from kdbench.errors import KDBenchError
    from kdbench.runs import sweep

    outcomes: list[str] = []

    def job(composed: DictConfig, own: DictConfig | None = None) -> float | None:
        outcomes.append("unfinished")  # code of others may leave by an exit of its own
        outcomes[-1], objective = run_job(composed, own or HydraConfig.get())
        return objective

    arguments = sys.argv[1:] = configuration.in_place(configuration.at_home(sys.argv[1:]))
    multirun = bool({"-m", "--multirun"} & set(arguments))
    plain = [a for a in arguments if not a.startswith("-")]
    try:
        configuration.register()
        folder = str(configuration.folder())
        run: Callable[[], Any] = hydra.main(version_base="1.3", config_path=folder, config_name="config")(job)
        configuration.choices(plain, multirun)
        if {"-h", "--help"} & set(arguments):
            from kdbench.reference import help_text

            return print(help_text(configuration.first(plain)))
        if len(arguments) - len(plain) == multirun:  # no flag of Hydra's that would ask for something else
            plain = configuration.expanded(plain) if multirun else plain
            composed, own = configuration.composed(configuration.first(plain) if multirun else plain)
            config = configuration.check(composed)
            if multirun:
                configuration.each_choice(plain)
                sweep.open_folder(config["results"])
            elif configuration.calls_only(own):  # Hydra would compose the same twice more
                run = functools.partial(job, composed, own)
            sys.argv[1:] = ["--multirun"] * multirun + configuration.opened(plain)
    except KDBenchError as error:
        _fail(error)
    code: Any = 0
    try:
        with endings.signals():
            run()
    except SystemExit as end:
        # Lightning ends a training at a launcher's SIGTERM by an exit without a code, which would stand for success.
        code = 128 + signal.SIGTERM if type(end).__name__ == "SIGTERMException" else end.code
    finally:
        well = sweep.conclude() and all(status == "ok" for status in outcomes)
    if number := endings.received():
        print(f"kdbench: {endings.WORDS[signal.Signals(number)]}: the same command continues", file=sys.stderr)
        code = 128 + number
    sys.exit(code or int(not well))


def run_job(composed: DictConfig, own: DictConfig | HydraConf) -> tuple[str, float | None]:
    """Runs one composed configuration.

    Args:
        composed: Keys of the run.
        own: What Hydra goes by.

    Returns:
        The status and the last score on validation, for sweepers that search; a user's error ends the process (or, in
        a sweep, this job) with one line.
    """
    from kdbench.base import endings
    from kdbench.configuration import config as configuration
    from kdbench.errors import KDBenchError
    from kdbench.runs import sweep

    try:
        with uncollected():
            from kdbench.runs.run import Run

            config = configuration.check(composed)
            if sweep.job is not None and not own.launcher._target_.endswith("SlurmLauncher"):
                configuration.one_device(config)
            command = configuration.command_line(list(own.overrides.task))
            run = Run(config, command, job=sweep.job.title if sweep.job else None)
        outcome = run.execute()
    except KDBenchError as error:
        endings.check()
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if sweep.job is None:
            _fail(error)
        print(f"kdbench: error: {sweep.job.title}: {error}", file=sys.stderr)
        sweep.job.note("failed", str(error))
        return "failed", None
    except Exception as error:  # before there was anything to record; the other jobs of a sweep go on
        endings.check(endings.LATE)
        if sweep.job is None:
            raise
        traceback.print_exc()
        sweep.job.note("failed", f"{type(error).__name__}: {error}")
        return "failed", None
    if sweep.job is not None:
        sweep.job.note(outcome.status, os.path.relpath(outcome.path), outcome.path.absolute())
    return outcome.status, sweep.objective(outcome.path, run.task.selection)


def _fail(error: Exception) -> NoReturn:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    sys.exit(f"kdbench: error: {error}")


if __name__ == "__main__":
    main()
