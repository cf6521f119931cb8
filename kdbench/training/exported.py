"""Models as files for other runtimes: ``torch.export``, ONNX, and ONNX Runtime as what is measured."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.script import open_session
from kdbench.task import ExportPlan


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the exporters print, which is about their own graphs, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def program(plan: ExportPlan) -> Any:
    """Exports a plan's module with the axes of any length that it names.

    Raises:
        KDBenchError: It cannot be exported.
    """
    counted = {what for axes in plan.dynamic.values() for what in axes.values()}
    sizes = {what: torch.export.Dim(what, min=plan.least.get(what)) for what in counted}
    try:
        each = [{axis: sizes[what] for axis, what in plan.dynamic.get(name, {}).items()} for name in plan.names]
        example = tuple(_two(value, axes) for value, axes in zip(plan.example, each, strict=True))
        bound = inspect.signature(plan.module.forward).bind(*example).arguments
        shapes, following = {}, iter(each)
        for name, value in bound.items():  # what ``*inputs`` takes is one argument of several tensors
            several = isinstance(value, tuple)
            shapes[name] = tuple(next(following) for _ in value) if several else next(following)
        # What a size of two axes must fulfil (a stride's remainder, say) is then asked of inputs, not of all sizes.
        late = bool(plan.least)
        return torch.export.export(
            plan.module, example, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=late
        )
    except Exception as error:  # whatever its tracing meets in somebody's module
        reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
        raise KDBenchError(f"the student cannot be exported: {reason}") from None


def _two(value: Any, axes: Iterable[int]) -> Any:
    """Doubles the axes of any length, as one of length 1 is taken for a constant."""
    for axis in axes:
        value = torch.cat([value, value], axis)
    return value


def write_onnx(plan: ExportPlan, path: Path, facts: Mapping[str, str]) -> None:
    """Writes the ONNX file of a plan, with the names that it gives to inputs, outputs and axes.

    Args:
        plan: What is written.
        path: The file.
        facts: Its metadata.

    Raises:
        KDBenchError: The model cannot be exported, or the packages that do it are not there.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KDBenchError(f"an ONNX file needs {error.name}: pip install 'kdbench[export]'") from None
    names = {"input_names": list(plan.names), "output_names": list(plan.outputs) or None}
    with quiet():
        made = torch.onnx.export(program(plan), **names, dynamo=True, verbose=False)  # type: ignore[arg-type]
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
    _own_zeros(graph)
    made.model.metadata_props.update(facts)
    made.save(path)


def _own_zeros(graph: Any) -> None:
    """Gives each tensor of integers a zero point of its own: ONNX Runtime cannot change the sign of shared ones."""
    import onnx_ir

    for node in [node for node in graph if node.op_type == "DequantizeLinear" and len(node.inputs) > 2]:
        zero = node.inputs[2]
        held = zero.const_value
        if held is not None and held.numpy().dtype == np.int8 and len(zero.uses()) > 1:
            name = f"{zero.name}_{node.outputs[0].name}"
            own = onnx_ir.val(name, const_value=onnx_ir.tensor(held.numpy(), name=name))
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def open_onnx(path: Path, threads: int | None = None) -> Any:
    """Opens an ONNX file in ONNX Runtime on the processor.

    Args:
        path: The file.
        threads: Of it; all cores by default.

    Raises:
        KDBenchError: ONNX Runtime is not there.
    """
    try:
        return open_session(path, threads)
    except ImportError as error:
        raise KDBenchError(f"running an ONNX file needs {error.name}: pip install 'kdbench[export]'") from None


def arrays(plan: ExportPlan) -> dict[str, np.ndarray]:
    """Returns the example of a plan by input, as ONNX Runtime takes it."""
    return {
        name: value.detach().cpu().contiguous().numpy() for name, value in zip(plan.names, plan.example, strict=True)
    }


Engine = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Runs a model on its inputs by name and returns its first output."""


def engines(path: Path) -> dict[str, Engine]:
    """Opens an ONNX file in ONNX Runtime, and in OpenVINO where that is installed, on one thread of the processor.

    OpenVINO computes what is not quantised in float32, as ONNX Runtime does.
    """
    session = open_onnx(path, threads=1)
    found: dict[str, Engine] = {"onnxruntime": lambda given: session.run(None, dict(given))[0]}
    if importlib.util.find_spec("openvino") is not None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", options)
        found["openvino"] = lambda given: compiled(dict(given))[0]
    return found


def agreement(
    path: Path, plan: ExportPlan, network: ExportPlan, batches: Iterable[Any], most: int = 2000
) -> dict[str, float]:
    """Returns in how many of the samples each engine gives a file the class of a network, in percent, by engine.

    Args:
        path: The ONNX file of ``plan``, for inputs of its example's size.
        plan: What was exported, of one input.
        network: What it is compared with; takes several samples at once.
        batches: Tensors of inputs; where they are no such, or of other sizes, nothing is returned.
        most: Samples, or those of the batch after these.
    """
    opened = engines(path)
    same, count, seen = dict.fromkeys(opened, 0), 0, 0
    for inputs in batches:
        example = plan.example[0]
        alike = isinstance(inputs, Tensor) and len(plan.example) == 1 and inputs.shape[1:] == example.shape[1:]
        if not alike or len(example) != 1:
            return {}
        with torch.no_grad():
            given = network.module(inputs)
        own = (given[0] if isinstance(given, tuple) else given).argmax(1).numpy()
        samples = inputs.split(1)
        for name, run in opened.items():
            classes = np.concatenate([run({plan.names[0]: sample.numpy()}).argmax(1) for sample in samples])
            same[name] += int((classes == own).sum())
        count += own.size
        seen += len(samples)
        if seen >= most:
            break
    return {name: 100 * found / count for name, found in same.items()} if count else {}


@dataclass(frozen=True)
class Measured:
    """An ONNX file in the engines that are here.

    Attributes:
        bytes: Of the file.
        packed_bytes: Of the constants in it: weights as they are stored, scales and biases.
        bits: Of a weight that is an integer, on average; None where none is.
        times: Median and 90th percentile of one run on the example in each engine, ms, one thread.
    """

    bytes: int
    packed_bytes: int
    bits: float | None
    times: Mapping[str, tuple[float, float]]


def measure_onnx(plan: ExportPlan, path: Path, repeats: int = 60, warmup: int = 8, budget_s: float = 5.0) -> Measured:
    """Writes a plan's ONNX file and times it in ONNX Runtime, and in OpenVINO where that is, on one thread.

    Args:
        plan: What is measured, on its example.
        path: The file that is written.
        repeats: Most timed runs.
        warmup: Runs before timing.
        budget_s: Timing in an engine ends early after this long, with at least 5 runs.
    """
    import onnx

    write_onnx(replace(plan, dynamic={}, least={}), path, {})  # axes of any length take several times as long
    given = arrays(plan)
    times = {name: _time(partial(run, given), repeats, warmup, budget_s) for name, run in engines(path).items()}
    constants = [onnx.numpy_helper.to_array(constant) for constant in onnx.load(path).graph.initializer]
    # What has one axis is a bias, a zero point or a shape.
    weights = [c for c in constants if c.ndim > 1 and np.issubdtype(c.dtype, np.integer)]
    bits = 8 * sum(c.nbytes for c in weights) / sum(c.size for c in weights) if weights else None
    packed = sum(c.nbytes for c in constants)
    return Measured(path.stat().st_size, packed, bits, times)


def _time(run: Callable[[], object], repeats: int, warmup: int, budget_s: float) -> tuple[float, float]:
    times: list[float] = []
    spent = 0.0
    for index in range(warmup + repeats):
        start = time.perf_counter()
        run()
        elapsed = time.perf_counter() - start
        spent += elapsed
        if index >= warmup:
            times.append(1000 * elapsed)
        if spent > budget_s and len(times) >= 5:
            break
    return statistics.median(times), float(np.percentile(times, 90))
