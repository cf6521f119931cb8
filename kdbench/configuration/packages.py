"""Packages of others that add YAML by an entry point."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from kdbench.errors import KDBenchError

#: Entry-point group through which another package adds its YAML: the value is a package with config groups.
CONF_GROUP = "kdbench.conf"


def folder() -> Path:
    """Returns the folder of the YAML files: ``conf/`` of a checkout, ``kdbench/conf`` of an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise KDBenchError(f"no conf/config.yaml beside {package}: the installation is not whole, install kdbench again")


def entries() -> tuple[EntryPoint, ...]:
    """Returns the entry points of other packages; they are read anew once a folder of ``sys.path`` changes."""
    return _entries(tuple((place, os.stat(place).st_mtime_ns) for place in sys.path if os.path.exists(place)))


@functools.lru_cache(maxsize=8)
def _entries(_places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=CONF_GROUP))  # of some hundred packages, one file each


def file_of(group: str, option: str) -> Path | None:
    """Returns the file of an option, also of another package."""
    others = (place for entry in entries() for place in folders(entry))
    found = (place / group / f"{option}.yaml" for place in itertools.chain([folder()], others))
    return next((path for path in found if path.is_file()), None)


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
    for entry in entries():
        found = [*folders(entry)]
        if not any(True for folder in found for _ in folder.rglob("*.yaml")):
            why = "holds no YAML: is it package data in its pyproject.toml?" if found else "cannot be found"
            said += f"; {entry.value}, which the entry point {entry.name!r} names, {why}"
    return said
