"""A recorded student for other runtimes: ``python -m kdbench.export RUN [--format onnx|pt2] [--out FILE]``.

The file says how it is used (:data:`FACTS` of an ONNX file's metadata, or an extra file of that name in a ``pt2``): the
run, its metric, class names and inputs as in the record, what else the task says. Beside an ONNX file lies
``run_<name>.py``, which takes a user's files to predictions without kdbench and without torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from kdbench.base.store import write_atomic
from kdbench.errors import KDBenchError

if TYPE_CHECKING:
    from kdbench.runs.deployment import RecordedRun
    from kdbench.task import ExportPlan

Format = Literal["onnx", "pt2"]

FACTS = "kdbench"
"""Key of the JSON that says how an exported model is used."""

TOLERANCE = 1e-3
"""Largest difference of an exported model's outputs, over the largest output: other kernels sum in another order."""


def export(
    found: RecordedRun, form: Format = "onnx", out: Path | None = None, artifact: str = "student"
) -> tuple[Path, float]:
    """Writes what a task exports of a recorded student, with the axes of any length that its plan names.

    The file is read back and run on the task's example before it takes its name.

    Args:
        found: What :func:`kdbench.runs.deployment.read_run` reads.
        form: ``onnx``, or ``pt2`` for :func:`torch.export.save`.
        out: The file; ``<run>/student.<form>`` by default.
        artifact: What of the run.

    Returns:
        The file, and how far its outputs are from the student's, over the largest output.

    Raises:
        KDBenchError: The model cannot be exported, or the file does not do the same.
    """
    left = found.artifact(artifact)
    plan = (left.export or found.task.export)(left.module)
    facts = json.dumps(_facts(found, plan, found.called(artifact)))
    out = out if out is not None else found.folder / f"{found.called(artifact)}.{form}"
    aside = out.with_name(f".{out.name}.{os.getpid()}.{form}")
    if not out.parent.is_dir():
        raise KDBenchError(f"--out {out}: there is no folder {out.parent}")
    try:
        gap = {"onnx": _onnx, "pt2": _pt2}[form](plan, aside, facts)
        if not gap <= (TOLERANCE if left.tolerance is None else left.tolerance):
            raise KDBenchError(f"{out}: its outputs differ from the student's by {gap:.1e} of the largest: not written")
        script = out.with_name(f"run_{out.stem}.py")
        if form == "onnx" and plan.script:
            write_atomic(script, _script(("kdbench.script", *plan.script), out.name, found.record.run_id))
        aside.replace(out)
    except OSError as error:
        raise KDBenchError(f"--out {out}: the model cannot be written: {error}") from None
    finally:
        aside.unlink(missing_ok=True)
    return out, gap


def _facts(found: RecordedRun, plan: ExportPlan, name: str) -> dict[str, Any]:
    """Says how the model is used, and where it comes from."""
    record, data = found.record, found.task.dataset()
    assert record.primary is not None
    scored = record.scores[name]
    return {
        "run_id": record.run_id,
        "task": record.task,
        "method": record.method,
        "dataset": {"name": data.name, "digest": data.digest},
        "metric": {**dict(record.primary), "test": scored.test[record.primary.name]},
        "classes": list(data.classes),
        "inputs": dict(data.inputs),
        **plan.facts,
    }


def _script(modules: tuple[str, ...], name: str, run_id: str) -> str:
    """Joins the sources of modules to one file; what one imports from another is above it."""
    needs = "needs numpy, pillow and onnxruntime"
    joined = [f"# Runs {name} beside it, of run {run_id}: {needs}. Written by kdbench.export."]
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        joined.append(Path(spec.origin).read_text(encoding="utf-8"))
    text = "\n".join(joined)
    own = "|".join(re.escape(module) for module in modules)
    text = re.sub(rf"^from (?:{own}) import (?:\([^)]*\)|.*)\n", "", text, flags=re.MULTILINE)
    future = "from __future__ import annotations\n"
    first, _, rest = text.partition(future)
    return first + future + rest.replace(future, "")


def _onnx(plan: ExportPlan, path: Path, facts: str) -> float:
    import torch

    from kdbench.training.exported import arrays, open_onnx, write_onnx

    write_onnx(plan, path, {FACTS: facts})
    return _gap(plan, [torch.from_numpy(value) for value in open_onnx(path).run(None, arrays(plan))])


def _pt2(plan: ExportPlan, path: Path, facts: str) -> float:
    import torch

    from kdbench.training.exported import program, quiet

    with quiet():
        torch.export.save(program(plan), path, extra_files={FACTS: facts})
    return _gap(plan, torch.export.load(path).module()(*plan.example))


def _gap(plan: ExportPlan, found: Any) -> float:
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.no_grad():
        expected = tree_leaves(plan.module(*plan.example))
    pairs = list(zip(tree_leaves(found), expected, strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def main(arguments: list[str] | None = None) -> int:
    """Writes the file and prints where it is."""
    parser = argparse.ArgumentParser("python -m kdbench.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a record, e.g. results/classification/kd/…")
    parser.add_argument("--format", choices=get_args(Format), default="onnx", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="the file (default: student.FORMAT in the record's folder)")
    parser.add_argument("--artifact", default="student", metavar="NAME", help="what of the run (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        from kdbench.runs.deployment import read_run

        run = read_run(options.run)
        path, gap = export(run, options.format, options.out, options.artifact)
    except KDBenchError as error:
        print(f"kdbench: error: {error}", file=sys.stderr)
        return 1
    script = path.with_name(f"run_{path.stem}.py")
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB, outputs within {gap:.0e} of the student's")
    if options.format == "onnx" and script.exists():
        print(f"{script}: python {script.name} INPUT…, without kdbench")
    if changed := run.changed():
        print(f"kdbench: {changed}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    own_imports()
    lenient_output()
    sys.exit(main())
