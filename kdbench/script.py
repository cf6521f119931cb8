"""What all scripts beside exported models have in common; it is joined to those that ``ExportPlan.script`` names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Opens an exported model, with what it says of its use."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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
