"""What fits what: ``python -m kdbench.matrix [--format text|json] [--task T --names]``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdbench import config as configuration
from kdbench.cache import Store
from kdbench.digest import digest, digest_files
from kdbench.errors import KDBenchError, nearest

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
    specs = [(axis, n, configuration.option(axis, n)) for axis in AXES for n in configuration.options(axis)]
    pairs = [configuration.option("pair", name) for name in configuration.options("pair")]
    cells = []
    for task in configuration.options("task"):
        default = configuration.load([f"task={task}"])
        own = {default["pair"]["name"]: default["pair"]}
        for pair in pairs:
            if pair.get("task") in (None, task):
                own.setdefault(pair["name"], pair)
        cells += [_cell(axis, name, spec, default["task"], own) for axis, name, spec in specs]
    return cells


def _cell(
    axis: str, name: str, spec: Mapping[str, Any], task: Mapping[str, Any], pairs: Mapping[str, Mapping[str, Any]]
) -> Cell:
    from kdbench.build import locate
    from kdbench.compat import bind

    reason = None
    for pair_name, pair in pairs.items():
        if "_target_" not in spec:
            return Cell(axis, name, task["name"], pair_name, True, None)
        try:
            plugin: Any = locate(spec["_target_"])
            owner: Any = locate(task["_target_"])
            bind(plugin, owner, pair, _bindings(spec, pair))
        except KDBenchError as error:
            reason = reason or str(error)
        else:
            return Cell(axis, name, task["name"], pair_name, True, None)
    return Cell(axis, name, task["name"], None, False, reason)


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
    others = [
        (e.group, e.name, e.value, e.dist.version if e.dist else "")
        for group in ("kdbench.conf", "kdbench.tasks", "kdbench.methods")
        for e in importlib.metadata.entry_points(group=group)
    ]
    key = digest([digest_files(files, package.parent), others])

    def make(work: Path) -> dict[str, Any]:
        return {"cells": [asdict(cell) for cell in compute()]}

    return [Cell(**cell) for cell in store.product("matrix", key, make).manifest["cells"]]


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
                raise KDBenchError(f"task={options.task}: there is no such task: {nearest(options.task, tasks)}")
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
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("axis", "name", *tasks):
        table.add_column(column)
    by_place = {(c.axis, c.name, c.task): c for c in found}
    for axis, name in dict.fromkeys((c.axis, c.name) for c in found):
        row = [by_place[axis, name, task] for task in tasks]
        table.add_row(axis, name, *(f"[green]{c.pair}[/]" if c.ok else f"[dim]{c.reason}[/]" for c in row))
    Console().print(table)


if __name__ == "__main__":
    from kdbench.__main__ import own_imports

    own_imports()
    sys.exit(main())
