"""Predictions of a recorded student: ``python -m kdbench.predict RUN INPUT [--out PICTURE]``."""

from __future__ import annotations

import argparse
import json
import signal
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
    from kdbench.deployment import read_run

    recorded = read_run(run)
    task = recorded.task
    batch = task.read(source)
    model = recorded.model(batch)
    found = task.predictions(model, batch)
    if out is not None:
        picture = task.picture(batch, {recorded.side: model})
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
    from kdbench.__main__ import lenient_output, own_imports

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    lenient_output()
    own_imports()
    sys.exit(main())
