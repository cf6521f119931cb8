"""Students of eight-bit integers beside the same in floating point, both in ONNX Runtime on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

import tasks.classification.models  # noqa: F401  registers the networks of CIFAR with timm
from benchmarks.report import Row
from benchmarks.turns import Times, alternate
from kdbench.base import rng
from kdbench.quant.deployed import silent
from kdbench.quant.traced import Trained, replaced, trace
from kdbench.task import ExportPlan
from kdbench.training.exported import open_onnx, write_onnx

#: How many times as fast as in floating point each network is wished to be, by images of a batch.
AIMS: Mapping[str, Mapping[int, float]] = {
    "cifar_resnet8x4": {1: 2.5, 32: 3.2},
    "cifar_resnet20": {1: 1.6, 32: 1.7},
}
SIDE, CLASSES = 32, 100


def integers(name: str) -> tuple[nn.Module, nn.Module]:
    """Makes a network of timm with weights of chance, and the same converted; ranges are those of noise."""
    with silent():
        from kdbench.quant.pt2e import Converted, prepared, roundings
    with rng.scope(0, "integers"):
        model = timm.create_model(name, num_classes=CLASSES).eval()
        images = torch.randn(8, 3, SIDE, SIDE)
    graph, calls = trace(model, (images,), [[0]], [])
    trained = Trained(model, prepared(graph)[0], calls).eval()
    for rounding in roundings(trained):
        rounding.training = True
    with torch.no_grad():
        trained(images)
    return model, replaced(trained.eval(), Converted).eval()


def latency(rounds: int = 7, repeats: int = 20, names: tuple[str, ...] = tuple(AIMS)) -> Iterator[Row]:
    """Time of the converted network over that of the float one, at batch 1 and 32."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            sessions = {}
            for kind, model in zip(("float", "int8"), integers(name), strict=True):
                path = Path(folder) / f"{kind}.onnx"
                example = (torch.zeros(1, 3, SIDE, SIDE),)
                write_onnx(ExportPlan(model, example, ("images",), ("logits",), {"images": {0: "batch"}}), path, {})
                sessions[kind] = open_onnx(path, threads=1)
                sizes = f"{path.stat().st_size / 1000:.0f} kB"
        for batch, aim in AIMS[name].items():
            images = {"images": rng.numpy(0, "integers").normal(size=(batch, 3, SIDE, SIDE)).astype("float32")}
            runs = {kind: partial(session.run, None, images) for kind, session in sessions.items()}
            times: Mapping[str, Times] = alternate({**runs, "twin": runs["float"]}, rounds, repeats)
            first = times["float"]
            detail = f"{times['int8'].median:.2f} of {first.median:.2f} ms, one thread; the file is {sizes}"
            yield Row.of(
                f"int8 over float32 in ONNX Runtime, {name}, batch {batch}",
                "x",
                times["int8"].over(first),
                times["twin"].over(first),
                limit=1.0,
                aim=1 / aim,
                detail=detail,
            )
