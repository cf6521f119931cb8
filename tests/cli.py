"""The toy task behind the real command line, added to it as another package adds a task."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kdbench.base.instantiate import check, instantiate
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.plugin import Method
from kdbench.records.record import find_records, read_record
from kdbench.records.schema import Record
from kdbench.task import Batch
from tests.toy import Toy, collate

ROOT = Path(__file__).resolve().parents[1]
#: A task in a package of its own.
EXAMPLE = ROOT / "docs" / "examples" / "diabetes"
#: A method, an augmentation and a quantisation in another.
PLUGINS = ROOT / "docs" / "examples" / "plugins"


@dataclass(frozen=True)
class DataOptions:
    """``fault`` breaks the run where it says: ``loss`` while training, ``data`` before."""

    root: str | None
    fault: str | None


class CliToy(Toy):
    """The toy task with what only a whole run asks of a task."""

    def __init__(self, data: Mapping[str, Any], store: Store, noise: float = 0.0) -> None:
        own = {k: v for k, v in data.items() if k not in ("name", "task")}
        self.options = DataOptions(**check("data", DataOptions, own))

    def prepare(self, progress: bool = True) -> None:
        if self.options.fault == "data":
            raise KDBenchError("data.root: it is damaged")

    def build(self, architecture: Mapping[str, Any]) -> Any:
        return instantiate("pair.architecture", architecture)

    def loss(self, model: nn.Module, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.options.fault == "loss":
            raise ZeroDivisionError("a bug\nin two lines")
        return super().loss(model, outputs, batch)

    def picture(self, batch: Batch, models: Mapping[str, nn.Module]) -> Image.Image:
        return Image.new("RGB", (8 * len(models), 8), "white")

    def compare(self, models: Mapping[str, nn.Module], loader: Iterable[Batch]) -> Mapping[str, Mapping[str, float]]:
        return {name: {"models": float(len(models))} for name in models if name != "teacher"}

    def media(self, batch: Batch, models: Mapping[str, nn.Module]) -> Mapping[str, Any]:
        return {"object3d": {"type": "lidar/beta", "points": np.zeros((len(models), 4)), "boxes": np.array([])}}

    def example(self) -> Batch:
        return collate([(torch.zeros(3, 8, 8), 0, 0)])

    def read(self, path: Path) -> Batch:
        try:
            image = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise KDBenchError(f"{path}: not a .npy image: {error}") from None
        return collate([(image, 0, 0)])

    @torch.no_grad()
    def predictions(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        return [{"class": int(row.argmax())} for row in self.forward(model, batch.inputs)]


class Mixed(Method):
    requires = frozenset({"mixable"})


def install(site: Path, name: str = "toybox", conf: str = "tests.conf") -> Path:
    """Writes what an installed package would leave beside its code, and returns that folder."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[kdbench.conf]\n{name} = {conf}\n")
    return site


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        (line,) = self.err.strip().splitlines()
        assert line.startswith("kdbench: error: "), line
        assert self.code == 1
        return line.removeprefix("kdbench: error: ")


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ran:
    """``python -m kdbench`` in this process."""
    from kdbench.__main__ import main

    monkeypatch.setattr(sys, "argv", ["kdbench", *arguments])
    capsys.readouterr()
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    if isinstance(code, str):
        return Ran(1, said.out, said.err + code + "\n")
    return Ran(code or 0, said.out, said.err)


class CommandLine:
    """``python -m kdbench`` in this process, on one task at the smoke preset, in a folder of its own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str = "toy"
    ) -> None:
        self.task = task
        self.results = folder / "results"
        self.cache = folder / "cache"
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        monkeypatch.syspath_prepend(install(folder / "site"))
        monkeypatch.chdir(ROOT)

    def arguments(self, *arguments: str) -> list[str]:
        """The command's arguments, those given last."""
        return [f"task={self.task}", "preset=smoke", f"results={self.results}", f"cache={self.cache}", *arguments]

    def __call__(self, *arguments: str) -> Ran:
        return run(self.arguments(*arguments), self.monkeypatch, self.capsys)

    def records(self) -> list[Record]:
        """All records, whole by contract."""
        return [read_record(path) for path in find_records(self.results)]

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The trained models by role or stage; a role trained twice is an error."""
        found = [json.loads(path.read_text()) for path in self.cache.glob("model/*/manifest.json")]
        return {manifest["key"]: manifest for manifest in found}

    def tested(self) -> list[dict[str, Any]]:
        """What models scored on test sets."""
        return [json.loads(path.read_text()) for path in self.cache.glob("scores/*/manifest.json")]
