"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class KDBenchError(Exception):
    """Bad input or a run that cannot go on.

    The message is one line: what was found, what was expected, and the nearest fix. The command line prints it
    without a traceback and exits with a code other than 0.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """Says which of ``options`` a mistyped ``name`` probably meant, for the end of an error line."""
    options = sorted(set(options))
    if not options:
        return "nothing is available"
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(options[:12]) + (", …" if len(options) > 12 else "")
    return f"available: {shown}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the system says of files at or below ``path`` (no permission, a broken link, …) into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise KDBenchError(f"{printable(where)}: cannot be read ({error.strerror or error})") from None


def printable(path: Path | str) -> str:
    r"""Returns a path as text that can be written anywhere: bytes of its name that are not UTF-8 as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def absent(path: Path) -> str:
    """Says that there is nothing at ``path``, and what lies there that it probably meant."""
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    folder = missing.parent
    try:
        beside = [printable(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    except OSError:  # it may not be listed
        beside = []
    found = f"there is no {printable(missing.name)!r} in {printable(folder)}"
    return f"{printable(path)}: {found}: {nearest(missing.name, beside)}"
