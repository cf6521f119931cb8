"""The rooms of the engine: what one imports lies below it, no two files import each other, none outgrows its reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import kdbench
from tests.cli import ROOT

#: From the bottom up: rooms, and the files beside them that authors of methods and tasks write against.
ORDER = (
    *("errors", "base", "features", "functional", "task", "splits", "data", "needs", "roles", "signals", "plugin"),
    *("optim", "script", "methods", "augment", "quant", "configuration", "training", "records", "mirror", "runs"),
    *("api", "catalogue", "reference", "wandb_sync", "results", "predict", "export", "matrix", "doctor", "__main__"),
)
HOME: dict[str, str] = vars(kdbench)["_HOME"]
PACKAGE = ROOT / "kdbench"
FILES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    """Yields every import in a file, those within functions and for types alone included, as a module of the engine."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "") in FILES:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if node.module == "kdbench" and module not in FILES and alias.name in kdbench.__all__:
                    module = HOME.get(alias.name, "kdbench")
                yield module if module in FILES else str(node.module)


GRAPH = {name: {found for found in imports(path) if found not in (name, "kdbench")} for name, path in FILES.items()}


def rank(module: str) -> int:
    return ORDER.index(module.split(".")[1])


def test_every_file_has_its_room():
    found = {name.split(".")[1] for name in FILES if name != "kdbench"}
    assert found == set(ORDER)


def test_imports_point_downwards():
    up = {f"{name} -> {m}" for name, below in GRAPH.items() for m in below if rank(m) > rank(name)}
    assert up == set()


def test_no_files_import_each_other():
    order = list(TopologicalSorter(GRAPH).static_order())  # raises CycleError
    assert len(order) == len(FILES)


def test_the_engine_imports_neither_tasks_nor_leaderboard():
    for name, path in FILES.items():
        found = {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.alias)}
        assert not {n for n in found if n.split(".")[0] in ("tasks", "leaderboard")}, name


def test_files_can_be_read_in_one_sitting():
    folders = ("kdbench", "tasks", "leaderboard", "tests", "benchmarks", "docs")
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if (lines := path.read_text().count("\n")) > 500
    }
    assert long == {}


def test_authors_need_one_import():
    for name in kdbench.__all__:
        assert getattr(kdbench, name) is not None
    stub = (PACKAGE / "__init__.pyi").read_text()
    declared = {a.name: n.module for n in ast.parse(stub).body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert declared == HOME
