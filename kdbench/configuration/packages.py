"""Packages of others that add YAML by an entry point."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

#: Entry-point group through which another package adds its YAML: the value is a package with config groups.
CONF_GROUP = "kdbench.conf"


def folders(entry: EntryPoint) -> Iterator[Path]:
    """Yields the folders of the package that an entry point names; none where it cannot be found."""
    try:
        spec = find_spec(entry.value)
    except ImportError:
        return
    yield from (Path(folder) for folder in spec.submodule_search_locations or ()) if spec else ()


def without_yaml() -> str:
    """Says, for the end of an error line, which packages brought no YAML."""
    said = ""
    for entry in entry_points(group=CONF_GROUP):
        found = [*folders(entry)]
        if not any(True for folder in found for _ in folder.rglob("*.yaml")):
            why = "holds no YAML: is it package data in its pyproject.toml?" if found else "cannot be found"
            said += f"; {entry.value}, which the entry point {entry.name!r} names, {why}"
    return said
