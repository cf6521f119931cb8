"""A recorded student for other runtimes: ``python -m kdbench.export RUN [--format onnx|pt2] [--out FILE]``.

The file says how it is used (:data:`FACTS` of an ONNX file's metadata, or an extra file of that name in a ``pt2``): the
run, its metric, class names and inputs as in the record, what else the task says. Beside an ONNX file lies
``run_<name>.py``, which takes a user's files to predictions without kdbench and without torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
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
        with _quiet():
            gap = {"onnx": _onnx, "pt2": _pt2}[form](plan, aside, facts)
        if not gap <= TOLERANCE:
            raise KDBenchError(f"{out}: its outputs differ from the student's by {gap:.1e} of the largest: not written")
        script = out.with_name(f"run_{out.stem}.py")
        if form == "onnx" and plan.script:
            write_atomic(script, _script(plan.script, out.name, found.record.run_id))
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters print, which is about their own graphs, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _program(plan: ExportPlan) -> Any:
    import torch

    counted = {what for axes in plan.dynamic.values() for what in axes.values()}
    sizes = {what: torch.export.Dim(what) for what in counted}
    try:
        each = [{axis: sizes[what] for axis, what in plan.dynamic.get(name, {}).items()} for name in plan.names]
        example = tuple(_two(value, axes) for value, axes in zip(plan.example, each, strict=True))
        bound = inspect.signature(plan.module.forward).bind(*example).arguments
        shapes, following = {}, iter(each)
        for name, value in bound.items():  # what ``*inputs`` takes is one argument of several tensors
            several = isinstance(value, tuple)
            shapes[name] = tuple(next(following) for _ in value) if several else next(following)
        return torch.export.export(plan.module, example, dynamic_shapes=shapes)
    except Exception as error:  # whatever its tracing meets in somebody's module
        reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
        raise KDBenchError(f"the student cannot be exported: {reason}") from None


def _two(value: Any, axes: Iterable[int]) -> Any:
    """Doubles the axes of any length, as one of length 1 is taken for a constant."""
    import torch

    for axis in axes:
        value = torch.cat([value, value], axis)
    return value


def _onnx(plan: ExportPlan, path: Path, facts: str) -> float:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KDBenchError(f"--format onnx needs {error.name}: pip install 'kdbench[export]'") from None
    names = {"input_names": list(plan.names), "output_names": list(plan.outputs) or None}
    made = torch.onnx.export(_program(plan), **names, dynamo=True, verbose=False)  # type: ignore[arg-type]
    assert made is not None
    graph = made.model.graph
    # The exporter numbers what has a name in the plan.
    called = {
        str(value.shape[axis]): what
        for value, name in zip(graph.inputs, plan.names, strict=True)
        for axis, what in plan.dynamic.get(name, {}).items()
        if value.shape is not None
    }
    for shape in [value.shape for value in (*graph.inputs, *graph.outputs) if value.shape is not None]:
        for axis, size in enumerate(shape):
            shape[axis] = called.get(str(size), size)
    made.model.metadata_props[FACTS] = facts
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {name: value.contiguous().numpy() for name, value in zip(plan.names, plan.example, strict=True)}
    return _gap(plan, [torch.from_numpy(value) for value in session.run(None, given)])


def _pt2(plan: ExportPlan, path: Path, facts: str) -> float:
    import torch

    torch.export.save(_program(plan), path, extra_files={FACTS: facts})
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
