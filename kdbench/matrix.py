"""What fits what: ``python -m kdbench.matrix [--format text|json] [--task T --names]``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kdbench.base.digest import digest, digest_files, source_digest
from kdbench.base.store import Store
from kdbench.configuration import config as configuration
from kdbench.configuration.packages import CONF_GROUP, folders
from kdbench.errors import KDBenchError

AXES = ("method", "augment", "quant")


@dataclass(frozen=True)
class Cell:
    """Whether an option of an axis serves a task.

    Attributes:
        axis: ``method``, ``augment`` or ``quant``.
        name: The option.
        task: The task.
        pair: The first of the task's pairs that serves it, its default before others; None where none does.
        ok: Whether one does.
        reason: Why not.
    """

    axis: str
    name: str
    task: str
    pair: str | None
    ok: bool
    reason: str | None


def compute() -> list[Cell]:
    """Computes every cell from class facts and configuration, without building a network."""
    pairs = []
    for name in configuration.options("pair"):
        with contextlib.suppress(Exception):  # of another package; its task, whose default it is, says what is wrong
            pairs.append(configuration.option("pair", name))
    spec = functools.cache(configuration.option)
    default = functools.cache(lambda task: configuration.load([f"task={task}"]))
    names = [(axis, name) for axis in AXES for name in configuration.options(axis)]
    found = []
    for task, (axis, name) in itertools.product(configuration.options("task"), names):
        try:
            pair = _serving(spec(axis, name), default(task), pairs)
        except KDBenchError as error:
            found.append(Cell(axis, name, task, None, False, str(error)))
        except Exception as error:  # in the code or YAML of another package; the other cells do not depend on it
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            found.append(Cell(axis, name, task, None, False, reason))
        else:
            found.append(Cell(axis, name, task, pair, True, None))
    return found


def _serving(spec: Mapping[str, Any], default: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Returns the first pair of a task with which a plugin can run; raises the error of the first where none can."""
    from kdbench.base.instantiate import locate
    from kdbench.configuration.resolved import PluginSpec

    pairs = {default["pair"]["name"]: default["pair"]}
    for pair in others:
        if pair.get("task") in (None, default["task"]["name"]):
            pairs.setdefault(pair["name"], pair)
    refusal = None
    for name, pair in pairs.items():
        if "_target_" not in spec:
            return name
        try:
            task: Any = locate(default["task"]["_target_"])
            PluginSpec.of("method", {**spec, "bind": _bindings(spec, pair)}).bind(task, pair)
        except KDBenchError as error:
            refusal = refusal or error
        else:
            return name
    assert refusal is not None
    raise refusal


def _bindings(spec: Mapping[str, Any], pair: Mapping[str, Any]) -> Any:
    """Returns ``bind`` of a method with what it reads of the pair."""
    from omegaconf import OmegaConf

    composed = OmegaConf.create({"bind": spec.get("bind") or {}, "pair": dict(pair)})
    return OmegaConf.to_container(composed.bind, resolve=True)


def cells(store: Store | None = None) -> list[Cell]:
    """Returns the cells, computed once for these sources, this configuration and these installed packages."""
    store = store or Store()
    package = Path(__file__).resolve().parent
    files = [*configuration.folder().rglob("*.yaml")]
    for top in ("kdbench", "tasks"):
        files += (package.parent / top).rglob("*.py")
    key = digest([digest_files(files, package.parent), *_others()])

    def make(work: Path) -> dict[str, Any]:
        return {"cells": [asdict(cell) for cell in compute()]}

    return [Cell(**cell) for cell in store.product("matrix", key, make).manifest["cells"]]


def _others() -> Iterator[list[str]]:
    """Yields digests of what each other package brings: its YAML, and those of its sources that it names there."""
    for entry in entry_points(group=CONF_GROUP):
        for folder in folders(entry):
            files = sorted(folder.rglob("*.yaml"))
            own = re.compile(rf"_target_: *({entry.value.partition('.')[0]}[\w.]*)\.")
            modules = {module for file in files for module in own.findall(file.read_text())}
            yield [entry.name, digest_files(files, folder), *map(_code, sorted(modules))]


def _code(module: str) -> str:
    try:
        return source_digest([module])
    except KDBenchError as error:
        return str(error)


def main(arguments: list[str] | None = None) -> int:
    """Prints the matrix."""
    parser = argparse.ArgumentParser("python -m kdbench.matrix", description=__doc__)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--task", help="one task only")
    parser.add_argument("--names", action="store_true", help="methods that serve --task, comma separated, for a sweep")
    options = parser.parse_args(arguments)
    try:
        found = cells()
        tasks = sorted({c.task for c in found})
        if options.task is not None:
            if options.task not in tasks:
                raise configuration.no_such("task", options.task, tasks)
            found = [c for c in found if c.task == options.task]
            tasks = [options.task]
        if options.names:
            if options.task is None:
                raise KDBenchError("--names needs --task T")
            print(",".join(c.name for c in found if c.axis == "method" and c.ok))
        elif options.format == "json":
            methods = sorted({c.name for c in found if c.axis == "method"})
            print(json.dumps({"methods": methods, "tasks": tasks, "cells": [asdict(c) for c in found]}, indent=1))
        else:
            _show(found, tasks)
    except KDBenchError as error:
        print(f"kdbench: error: {error}", file=sys.stderr)
        return 1
    return 0


def _show(found: list[Cell], tasks: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from kdbench.base.terminal import terminal

    table = Table()
    for column in ("axis", "name", *tasks):
        table.add_column(column)
    by_place = {(c.axis, c.name, c.task): c for c in found}
    for axis, name in dict.fromkeys((c.axis, c.name) for c in found):
        row = [by_place[axis, name, task] for task in tasks]
        table.add_row(axis, name, *(Text(c.pair or "", "green") if c.ok else Text(c.reason or "", "dim") for c in row))
    terminal().print(table)


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    lenient_output()
    own_imports()
    sys.exit(main())
