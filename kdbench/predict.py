"""Predictions of a recorded student: ``python -m kdbench.predict RUN INPUT [--out PICTURE]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kdbench.errors import KDBenchError


def predict(run: Path, source: Path, out: Path | None = None) -> list[dict[str, Any]]:
    """Runs a recorded student on one input.

    Args:
        run: Folder of a record.
        source: What the task reads (``.bin`` scan, image, …).
        out: Where the picture goes; none is drawn without it.

    Returns:
        Predictions, ready for JSON.

    Raises:
        KDBenchError: The record or the input cannot be read.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    from kdbench.cache import Store
    from kdbench.deployment import load_deployed
    from kdbench.digest import digest
    from kdbench.record import CONFIG, read_record
    from kdbench.stages import make_task

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
    task = make_task(config, Store(Path(config["cache"]) if config["cache"] else None))
    side = "teacher" if record.scores.student is None else "student"
    batch = task.read(source)
    model = load_deployed(config, task, side, folder, batch, f"{side}.safetensors")
    found = task.predictions(model, batch)
    if out is not None:
        picture = task.picture(batch, {side: model})
        try:
            picture.save(out)
        except (OSError, ValueError) as error:  # no such folder, no such format
            raise KDBenchError(f"--out {out}: the picture cannot be written: {error}") from None
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints predictions as JSON and writes the picture."""
    parser = argparse.ArgumentParser("python -m kdbench.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a record, e.g. results/pointcloud/kd/…")
    parser.add_argument("input", type=Path, help="one input, e.g. training/velodyne/000134.bin")
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="picture (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        found = predict(options.run, options.input, options.out)
    except KDBenchError as error:
        print(f"kdbench: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    print(f"picture: {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from kdbench.__main__ import own_imports

    own_imports()
    sys.exit(main())
