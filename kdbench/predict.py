"""Predictions of a recorded student: ``python -m kdbench.predict RUN INPUT [INPUT…] [--out PICTURE]``.

An input is a file or a folder of them, or, of a task that reads words, these:
``python -m kdbench.predict RUN "the king"``.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from kdbench.errors import KDBenchError, absent

if TYPE_CHECKING:
    from kdbench.runs.deployment import RecordedRun
    from kdbench.task import Task

SHOWN = 24
"""Inputs that the picture shows at most: the first ones."""

WIDTH, GAP, PAPER = 1500, 12, "white"


def predict(
    run: RecordedRun, inputs: Sequence[Path | str], out: Path | None = None, artifact: str = "student"
) -> Iterator[dict[str, Any]]:
    """Runs a recorded student on inputs, one after the other.

    Args:
        run: What :func:`kdbench.runs.deployment.read_run` reads.
        inputs: Files that the task reads (``.bin`` scan, image, …), or as text what it reads itself.
        out: Where the picture of the inputs goes, once the last one is done; none is drawn without it.
        artifact: What of the run predicts.

    Yields:
        ``input`` and the predictions for it, ready for JSON.

    Raises:
        KDBenchError: An input cannot be read, or the picture cannot be written.
    """
    model = None
    drawn: list[Image.Image] = []
    for path in inputs:
        batch = run.task.parse(path) if isinstance(path, str) else run.task.read(path)
        model = run.artifact(artifact, batch).module if model is None else model
        (found,) = run.task.predictions(model, batch)
        yield {"input": str(path), **found}
        if out is not None and len(drawn) < SHOWN:
            name = path if isinstance(path, str) else "/".join(path.absolute().parts[-2:])
            drawn.append(run.task.show(batch, model, name))
    if out is not None:
        try:
            _page(drawn).save(out)
        except (OSError, ValueError) as error:  # no such folder, no such format
            raise KDBenchError(f"--out {out}: the picture cannot be written: {error}") from None


def find_inputs(task: Task, given: Sequence[str]) -> list[Path | str]:
    """Lists the given files, and of a folder all files at any depth that the task reads, hidden ones left out.

    What is no file is itself the input of a task that reads text; what looks like the name of a file is not.

    Raises:
        KDBenchError: A path is not there, or a folder holds nothing to read.
    """
    found: list[Path | str] = []
    for name in given:
        path = Path(name)
        if not name or not _is_there(path):
            if task.reads_text and "/" not in name and path.suffix.lower() not in task.suffixes:
                found.append(name)
                continue
            raise KDBenchError(absent(path))
        inside = [path]
        if path.is_dir():
            files = (file for file in sorted(path.rglob("*")) if file.is_file())
            visible = (file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts))
            inside = [file for file in visible if not task.suffixes or file.suffix.lower() in task.suffixes]
            if not inside:
                wanted = ", ".join(f"*{suffix}" for suffix in task.suffixes) or "a file"
                raise KDBenchError(f"{path}: this folder holds no input of task {task.name}; expected {wanted}")
        found += inside
    return found


def _is_there(path: Path) -> bool:
    """Says whether there is a file or folder of that name; a sentence may be longer than names can be."""
    try:
        return path.exists()
    except OSError:
        return False


def _page(drawn: Sequence[Image.Image]) -> Image.Image:
    """Lays pictures out in rows, two at least side by side."""
    if len(drawn) == 1:
        return drawn[0]
    widest = max(picture.width for picture in drawn)
    columns = min(len(drawn), max(2, (WIDTH + GAP) // (widest + GAP)))
    share = min(1.0, (WIDTH - (columns - 1) * GAP) / columns / widest)
    if share < 1:
        drawn = [picture.resize((round(share * picture.width), round(share * picture.height))) for picture in drawn]
    wide, tall = max(i.width for i in drawn), max(i.height for i in drawn)
    rows = -(-len(drawn) // columns)
    page = Image.new("RGB", (columns * (wide + GAP) - GAP, rows * (tall + GAP) - GAP), PAPER)
    for place, picture in enumerate(drawn):
        row, column = divmod(place, columns)
        page.paste(picture, (column * (wide + GAP), row * (tall + GAP)))
    return page


def main(arguments: list[str] | None = None) -> int:
    """Prints predictions as JSON, one object a line, and writes the picture."""
    parser = argparse.ArgumentParser("python -m kdbench.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a record, e.g. results/pointcloud/kd/…")
    parser.add_argument("input", nargs="+", help="files or folders, e.g. training/velodyne/000134.bin, or a prompt")
    parser.add_argument("--out", type=Path, default=Path("prediction.png"), help="picture (default: %(default)s)")
    parser.add_argument("--artifact", default="student", metavar="NAME", help="what predicts (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="data.KEY=VALUE", help="how inputs are laid out")
    options = parser.parse_args(arguments)
    try:
        from kdbench.runs.deployment import read_run

        run = read_run(options.run, options.set)
        inputs = find_inputs(run.task, options.input)
        for found in predict(run, inputs, options.out, options.artifact):
            print(json.dumps(found, ensure_ascii=False), flush=True)
    except KDBenchError as error:
        print(f"kdbench: error: {error}", file=sys.stderr)
        return 1
    some = f" (the first {SHOWN} of {len(inputs)} inputs)" if len(inputs) > SHOWN else ""
    print(f"picture: {options.out}{some}", file=sys.stderr)
    if changed := run.changed():
        print(f"kdbench: {changed}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    lenient_output()
    own_imports()
    sys.exit(main())
