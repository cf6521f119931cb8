"""What fits what: ``python -m kdbench.matrix [--format text|json] [--task T --names [--replay]]``."""

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.base.digest import digest, digest_files, source_digest
from kdbench.base.store import Store
from kdbench.configuration import config as configuration
from kdbench.configuration.packages import entries, folders
from kdbench.errors import KDBenchError

if TYPE_CHECKING:
    from kdbench.plugin import Plugin

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
        no_replay: Why it cannot do with a teacher's stored answers (``teacher.replay``); empty where it can.
        refuses: Methods of the task that cannot stand beside it, with what they require that it takes from the batches.
    """

    axis: str
    name: str
    task: str
    pair: str | None
    ok: bool
    reason: str | None
    no_replay: str = ""
    refuses: str = ""


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
            found.append(Cell(axis, name, task, pair, True, None, _no_replay(spec(axis, name))))
        except KDBenchError as error:
            found.append(Cell(axis, name, task, None, False, str(error)))
        except Exception as error:  # in the code or YAML of another package; the other cells do not depend on it
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            found.append(Cell(axis, name, task, None, False, reason))
    classes = {(c.axis, c.name): _plugin(spec(c.axis, c.name)) for c in found if c.ok}
    return [replace(c, refuses=_refuses(c, found, classes, default(c.task))) if c.ok else c for c in found]


def _plugin(spec: Mapping[str, Any]) -> type[Plugin] | None:
    from kdbench.configuration.resolved import PluginSpec

    return PluginSpec.of("method", spec).plugin if "_target_" in spec else None


def _refuses(
    cell: Cell,
    found: Sequence[Cell],
    classes: Mapping[tuple[str, str], type[Plugin] | None],
    default: Mapping[str, Any],
) -> str:
    """Says which methods of a task require what a plugin of another axis takes from its batches."""
    from kdbench.base.instantiate import locate

    own = classes[cell.axis, cell.name] if cell.axis != "method" else None
    taken = own.takes(locate(default["task"]["_target_"])) if own else frozenset()  # type: ignore[arg-type]
    lost: dict[str, frozenset[str]] = {}
    for other in found if taken else ():
        beside = (other.task, other.axis, other.ok) == (cell.task, "method", True)
        method = classes[other.axis, other.name] if beside else None
        if method and method.requires & taken:
            lost[other.name] = method.requires & taken
    names = ", ".join(sorted(set().union(*lost.values())))
    return f"{', '.join(lost)}: each requires some of {names}" if lost else ""


def _no_replay(spec: Mapping[str, Any]) -> str:
    from kdbench.configuration.compat import no_replay

    plugin = _plugin(spec)
    return no_replay(plugin) if plugin else ""


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

    if "${" not in str(spec.get("bind")):
        return spec.get("bind")
    composed = OmegaConf.create({**spec, "bind": spec.get("bind") or {}, "pair": dict(pair)})
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
    for entry in entries():
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
    parser.add_argument("--replay", action="store_true", help="of those, the ones that teacher.replay serves")
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
            serving = [c for c in found if c.axis == "method" and c.ok and not (options.replay and c.no_replay)]
            print(",".join(c.name for c in serving))
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
    refused = any(c.refuses for c in found)
    for column in ("axis", "name", *tasks, "teacher.replay", *["not beside"] * refused):
        table.add_column(column)
    by_place = {(c.axis, c.name, c.task): c for c in found}
    for axis, name in dict.fromkeys((c.axis, c.name) for c in found):
        row = [by_place[axis, name, task] for task in tasks]
        cells = [Text(c.pair or "", "green") if c.ok else Text(c.reason or "", "dim") for c in row]
        reasons = [c.no_replay for c in row if c.ok]
        replay = Text(reasons[0], "dim") if any(reasons) else Text("yes" if reasons else "", "green")
        beside = {f"{c.task}: {c.refuses}" if len(tasks) > 1 else c.refuses for c in row if c.refuses}
        table.add_row(axis, name, *cells, replay, *[Text("\n".join(sorted(beside)), "dim")] * refused)
    terminal().print(table)


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    lenient_output()
    own_imports()
    sys.exit(main())
