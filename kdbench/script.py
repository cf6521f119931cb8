"""What all scripts beside exported models have in common; it is joined to those that ``ExportPlan.script`` names."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What describes the processor, where the system says it in a file.
PROCESSOR = Path("/proc/cpuinfo")


def overflows() -> bool:
    """Says whether sums of eight-bit products may overflow: on x86 without VNNI two of them are added in 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    return not PROCESSOR.is_file() or "vnni" not in PROCESSOR.read_text()


def open_session(path: Path, threads: int | None = None) -> Any:
    """Opens a model in ONNX Runtime on the processor, with weights held unsigned where signed ones would overflow.

    Args:
        path: The ONNX file.
        threads: Of it; all cores by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    if overflows():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Opens an exported model, with what it says of its use."""
    session = open_session(path)
    return session, json.loads(session.get_modelmeta().custom_metadata_map["kdbench"])


def main(predict: Callable[[Any, dict[str, Any], Path], dict[str, Any]], description: str) -> None:
    """Prints what ``predict`` returns for the model, its facts and each file of the command line, an object a line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("input", type=Path, nargs="+")
    name = Path(__file__).stem.removeprefix("run_") + ".onnx"
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name(name), help="default: %(default)s")
    options = parser.parse_args()
    session, facts = load_model(options.model)
    for path in options.input:
        print(json.dumps({"input": str(path), **predict(session, facts, path)}, ensure_ascii=False))
