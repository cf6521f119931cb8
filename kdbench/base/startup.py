"""The first lines of every command: where imports come from, and a terminal that takes any text."""

from __future__ import annotations

import base64
import gc
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def own_imports() -> None:
    """Takes off ``sys.path`` the current folder that ``python -m`` puts first, so that no file there shadows a package.

    One that ``PYTHONPATH`` names stays. ``tasks`` and ``leaderboard`` are common names: the run ends here if what would
    be imported as ``tasks`` is not the one installed with kdbench, or if another distribution wrote over either.
    """
    root = Path(__file__).resolve().parents[2]
    here = Path.cwd().resolve()
    if here != root and not sys.flags.safe_path and Path(sys.path[0] or ".").resolve() == here:
        del sys.path[0]
    found = find_spec("tasks")
    origin = Path(found.origin).resolve() if found and found.origin else None
    if origin is None or origin.parent.parent != root:
        sys.exit(
            f"kdbench: error: the package 'tasks' found is {origin or 'none'}, expected the one of kdbench in {root}: "
            "remove that folder from PYTHONPATH or use an environment of its own"
        )
    for path in written_over(root):
        sys.exit(
            f"kdbench: error: {path} is not the file that kdbench installed: another distribution has one of that "
            "name: install kdbench again, in an environment of its own"
        )


def written_over(root: Path) -> list[Path]:
    """Returns which of the two packages with a common name is not as kdbench was installed, by its list of files.

    Args:
        root: Where kdbench is. A checkout, and an installation from one, have no such list.
    """
    try:
        files = distribution("kdbench").files or []
    except PackageNotFoundError:
        return []
    found = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if str(file) in ("tasks/__init__.py", "leaderboard/__init__.py") and path.parent.parent == root and file.hash:
            content = path.read_bytes() if path.is_file() else b""
            digest = hashlib.new(file.hash.mode, content).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                found.append(path)
    return found


def lenient_output() -> None:
    """Lets a terminal that lacks a character show a question mark instead of ending the run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def uncollected() -> Iterator[None]:
    """Leaves what a block imports to the collector of cycles neither then nor later; once in a process.

    It would walk through the modules of torch and of what comes with it again and again, in vain: a quarter of the time
    until the first step, and a second at the end of the process.
    """
    if "torch" in sys.modules:  # by now there may be cycles that hold models
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def stand_ins(modules: Mapping[str, Any]) -> Iterator[None]:
    """Spares a block that imports a package what that imports in its turn and nothing here reads.

    Args:
        modules: By name, what the package finds in place of a module that is not loaded yet; None is no such module.
    """
    given = {name: value for name, value in modules.items() if name not in sys.modules}
    sys.modules.update(given)
    try:
        yield
    finally:
        for name in given:
            del sys.modules[name]
